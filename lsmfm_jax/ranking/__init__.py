"""Experts rank the masks of several methods without knowing which is whose: the kit they open, and its scores."""
