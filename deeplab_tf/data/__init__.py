"""Records, augmentation and the tf.data pipeline."""
