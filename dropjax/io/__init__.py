"""Puzzles, checkpoints and results as files."""
