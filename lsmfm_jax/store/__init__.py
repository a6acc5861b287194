"""Patch stores: made from image files, read, inspected, verified."""
