"""The use cases: they own the transactions."""
