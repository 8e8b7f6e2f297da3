"""`python -m deeplab_tf.data.worker`; see deeplab_tf/programs/data_worker.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.data_worker")
