"""Labels images, videos and test sets with a model and writes the results."""
