"""Methods that find the order of the blocks, a module for each."""
