"""Every contact with lm_eval's own machinery: task manager, arguments, environment, files."""
