"""`python -m datasets.ade20k`; see deeplab_tf/programs/convert/ade20k.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.convert.ade20k")
