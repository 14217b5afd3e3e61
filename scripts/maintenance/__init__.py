"""What only maintainers run: simulated coverage of the intervals, and the tables of reference results in the READMEs."""
