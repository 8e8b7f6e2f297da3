"""Runs program.py as `python -m deeplab_tf.plan`."""

import sys

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.plan.program", ["plan.py", *sys.argv[1:]])
