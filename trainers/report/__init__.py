"""A finished experiment's numbers, page, tables and cards."""
