"""The tabs of a run's page, one module each: `show(run)` draws it from the store."""
