"""`python -m deeplab_tf.predict`; see deeplab_tf/programs/predict.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.predict")
