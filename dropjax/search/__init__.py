"""The search: its strategies, their stages, and the verification of what they find."""
