"""Runs deeplab_tf/programs/eval.py, like the console script deeplab-eval."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.eval")
