"""The command `python -m dropjax.train`."""
