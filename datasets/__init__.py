"""Programs that prepare datasets, the same as the console script deeplab-convert."""
