"""A method that is shared."""
