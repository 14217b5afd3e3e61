"""Label sets: where they come from, and what is done to them before a trainer sees them."""
