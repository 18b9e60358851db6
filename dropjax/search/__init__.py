"""The strategies: which stages run, what becomes of what they find, and the last word on it."""
