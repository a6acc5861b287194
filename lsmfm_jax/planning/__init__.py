"""A recipe for the patches at hand: what they measure, what follows from it, and the file that says so."""
