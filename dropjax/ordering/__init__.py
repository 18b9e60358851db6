"""In what order the blocks stand: each method of its own."""
