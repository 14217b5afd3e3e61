"""A user's own rows as an lm_eval task: a folder with a YAML and the rows as parquet, made from values or from a file."""
