"""A study of many runs: a declared grid, its splits, its cells one process after another, its tables and verdicts."""
