"""Runs deeplab_tf/programs/predict.py as `python -m deeplab_tf.predict`."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.predict")
