"""The `rlx` command: one module a group of commands, all of them glue."""
