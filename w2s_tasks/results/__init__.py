"""From lm_eval's result files to intervals, gaps and differences."""
