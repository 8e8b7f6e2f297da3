"""Programs that prepare data sets: official archives and folders to TFRecords."""
