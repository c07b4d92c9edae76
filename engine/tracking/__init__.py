"""Mirrors of a run in other tools: SQL is the truth, and a bridge copies what is committed there, at its own pace."""
