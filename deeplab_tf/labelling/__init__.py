"""Images, videos and test sets through a model, and the files of their labels."""
