"""The command `python -m dropjax.order`."""
