"""Any residual network in order: its blocks as functions, its parts as data."""
