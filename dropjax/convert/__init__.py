"""The command `python -m dropjax.convert`."""
