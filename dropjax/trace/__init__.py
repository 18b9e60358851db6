"""The command `python -m dropjax.trace`."""
