"""Checkpoints to and from PyTorch, without PyTorch."""
