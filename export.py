"""Runs deeplab_tf/programs/export.py, like the console script deeplab-export."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.export")
