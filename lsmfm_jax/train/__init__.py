"""The machinery of training, blind to tasks."""
