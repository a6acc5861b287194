"""The files of the page, copied into every kit as they are: no Python."""
