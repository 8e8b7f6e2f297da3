"""Runs deeplab_tf/programs/zoo.py as `python -m deeplab_tf.checkpoints.zoo`."""

if __name__ == "__main__":
    from deeplab_tf.programs import zoo

    zoo.main()
