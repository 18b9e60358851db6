"""The network as data, the puzzle and its checks, options, results, errors, and the protocols that a search is handed."""
