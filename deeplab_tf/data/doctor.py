"""`python -m deeplab_tf.data.doctor`; see deeplab_tf/programs/doctor.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.doctor")
