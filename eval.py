"""See deeplab_tf/programs/eval.py; the same as the console script deeplab-eval."""

from deeplab_tf.programs.eval import run

if __name__ == "__main__":
    run()
