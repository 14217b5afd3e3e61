"""What a user writes: the experiment file."""
