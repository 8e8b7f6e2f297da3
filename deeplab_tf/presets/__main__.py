"""Runs deeplab_tf/programs/presets.py as `python -m deeplab_tf.presets`."""

if __name__ == "__main__":
    from deeplab_tf.programs import presets

    presets.main()
