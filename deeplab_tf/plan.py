"""`python -m deeplab_tf.plan`; see deeplab_tf/programs/plan.py."""

from deeplab_tf.programs.plan import run

if __name__ == "__main__":
    run()
