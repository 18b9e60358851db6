"""The command `python -m dropjax.report`."""
