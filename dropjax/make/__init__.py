"""Stacks to drop: trained, or drawn."""
