"""What a user writes: models of a spec, loading it from YAML, overrides, diagnostics and the schema. Light."""
