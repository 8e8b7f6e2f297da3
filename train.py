"""See deeplab_tf/programs/train.py; the same as the console script deeplab-train."""

from deeplab_tf.programs.train import run

if __name__ == "__main__":
    run()
