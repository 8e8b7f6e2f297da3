"""`python -m deeplab_tf.predict`; see deeplab_tf/programs/predict.py."""

from deeplab_tf.programs.predict import run

if __name__ == "__main__":
    run()
