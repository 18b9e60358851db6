"""dropjax puts the dropped layers of a residual network back in order."""
