"""Training algorithms (methods)."""
