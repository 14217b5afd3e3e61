"""Tasks and models of lm_eval, in process."""
