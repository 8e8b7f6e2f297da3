"""`python -m datasets.folder`; see deeplab_tf/programs/convert/folder.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.convert.folder")
