"""Passages for queries."""
