"""Makes TFRecords of datasets as people have them."""
