"""Moves on arrangements, and their effects on the outputs: exactly and to first order."""
