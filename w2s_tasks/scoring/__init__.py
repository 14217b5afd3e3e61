"""From replies and log-likelihoods to numbers."""
