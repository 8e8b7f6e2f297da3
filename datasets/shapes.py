"""`python -m datasets.shapes`; see deeplab_tf/programs/convert/shapes.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.convert.shapes")
