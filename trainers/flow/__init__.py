"""An experiment's way from its file to its stages."""
