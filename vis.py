"""Runs deeplab_tf/programs/vis.py, like the console script deeplab-vis."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.vis")
