"""The command `python -m dropjax.pair`."""
