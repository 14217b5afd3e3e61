"""Experiments and evaluation configs that ship with the package."""
