"""The store's schema, one revision a file; shipped in the wheel and run by `engine.store.schema`."""
