"""The report: what it measures, its figures, and its page."""
