"""Runs deeplab_tf/programs/train.py, like the console script deeplab-train."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.train")
