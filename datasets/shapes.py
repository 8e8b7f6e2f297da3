"""`python -m datasets.shapes`; see deeplab_tf/programs/convert/shapes.py."""

import sys

from deeplab_tf.programs.convert import shapes

if __name__ == "__main__":
    sys.exit(shapes.run(sys.argv))
