"""Moves on arrangements, and what they do to the outputs: exactly and to first order."""
