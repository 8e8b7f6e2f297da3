"""See deeplab_tf/programs/export.py; the same as the console script deeplab-export."""

from deeplab_tf.programs.export import run

if __name__ == "__main__":
    run()
