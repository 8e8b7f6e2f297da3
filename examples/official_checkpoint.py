"""Evaluates an official checkpoint on PASCAL VOC, exports it and evaluates the export.

    python examples/official_checkpoint.py VOCdevkit/VOC2012

Downloads the checkpoint once, and writes the folders tfrecord and exported. For other
checkpoints and their datasets, see docs/zoo.md.
"""

import sys

import deeplab_tf
from deeplab_tf.checkpoints.zoo import ZOO
from deeplab_tf.convert import voc2012

checkpoint = ZOO["mobilenetv2_coco_voc_trainaug"]
protocol = checkpoint.preset.evaluation  # one scale, images padded to 513x513

voc2012.convert(sys.argv[1], "tfrecord")
data = deeplab_tf.DataConfig("tfrecord", batch_size=protocol.eval_batch_size)
images = deeplab_tf.load_dataset(data, "val", training=False)

model = deeplab_tf.from_pretrained(checkpoint.name)
scores = deeplab_tf.evaluate(model, images, protocol)
published = checkpoint.preset.published.miou
print(f"mIoU {100 * scores['miou']:.2f}%; published on all 1,449 images: {published}%")
ious = zip(checkpoint.info.class_names, scores["iou_per_class"], strict=True)
for name, iou in ious:
    print(f"{name:15}", "absent" if iou is None else f"{100 * iou:.1f}")

# The export pads images as the protocol does, and takes any image and batch size.
deeplab_tf.export_saved_model(
    *(model, "exported"), crop_size=protocol.eval_crop_size, info=checkpoint.info
)
exported = deeplab_tf.load_artefact("exported")
print(f"exported: mIoU {deeplab_tf.evaluate(exported, images)['miou']:.2%}")
