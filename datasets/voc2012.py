"""`python -m datasets.voc2012`; see deeplab_tf/programs/convert/voc2012.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.convert.voc2012")
