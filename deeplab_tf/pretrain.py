"""`python -m deeplab_tf.pretrain`; see deeplab_tf/programs/pretrain.py."""

from deeplab_tf.programs.pretrain import run

if __name__ == "__main__":
    run()
