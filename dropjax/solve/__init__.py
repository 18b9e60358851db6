"""The command `python -m dropjax.solve`."""
