"""Runs `python -m deeplab_tf COMMAND`, as the console script deeplab."""

import sys

if __name__ == "__main__":
    from deeplab_tf.programs import commands

    commands.main(["deeplab", *sys.argv[1:]])
