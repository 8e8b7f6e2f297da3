"""`python -m datasets.coco_voc`; see deeplab_tf/programs/convert/coco_voc.py."""

from deeplab_tf.programs import run_program

if __name__ == "__main__":
    run_program("deeplab_tf.programs.convert.coco_voc")
