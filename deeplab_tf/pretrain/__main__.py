"""Runs `python -m deeplab_tf.pretrain`; see program.py."""

import sys

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.pretrain.program", ["pretrain.py", *sys.argv[1:]])
