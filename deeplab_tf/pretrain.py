"""`python -m deeplab_tf.pretrain`; see deeplab_tf/programs/pretrain.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.pretrain")
