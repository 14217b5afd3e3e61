"""The steps of an experiment: what each stands on, how large it is, how it is made."""
