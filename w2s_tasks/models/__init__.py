"""Models that lm_eval can load by name, and the value that names one."""
