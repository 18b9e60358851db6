"""Which output half belongs to which input half: signals in the weights, how sure they are, and least squares."""
