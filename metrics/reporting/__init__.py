"""The report and the comparison of runs."""
