"""Trains a model on your photos with black-and-white masks, using Keras' fit.

    python examples/own_photos.py my_data

my_data/images has photos. my_data/masks has a PNG of the same name and size for each:
255 on the object, 0 elsewhere. Downloads an official checkpoint once, and writes
my_data/records, my_data/model.keras and predictions in my_data/overlays.
"""

import pathlib
import sys

import keras
from PIL import Image

import deeplab_tf
from deeplab_tf.convert import folder
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.layout import Layout
from deeplab_tf.convert.splitting import Splitting
from deeplab_tf.images.inputs import read_image

root = pathlib.Path(sys.argv[1])
steps, epochs, size = 150, 5, 257  # more steps give better results

# A quarter of the photos is held out for validation.
info = deeplab_tf.DatasetInfo("my_data", class_names=("background", "object"))
folder.convert(
    Layout(str(root / "images"), str(root / "masks")),
    ClassList(info, value_map={255: 1}),
    str(root / "records"),
    Splitting(val_share=0.25),
)
data = deeplab_tf.DataConfig(
    str(root / "records"), crop_size=(size, size), batch_size=8
)
train = deeplab_tf.load_dataset(data, "train", training=True)
val = deeplab_tf.load_dataset(data, "val", training=False)

keras.utils.set_random_seed(0)
model = deeplab_tf.from_pretrained("mobilenetv2_coco_voc_trainaug", num_classes=2)
model.freeze_batch_norm()
model.compile(
    keras.optimizers.AdamW(deeplab_tf.PolySchedule(0.0001, steps=steps)),
    deeplab_tf.SegmentationLoss(),
    metrics=[deeplab_tf.MeanIoU(num_classes=2)],
)
model.fit(train, steps_per_epoch=steps // epochs, epochs=epochs, shuffle=False)
model.save(root / "model.keras")

scores = deeplab_tf.evaluate(model, val)
print("IoU of the object on held-out photos:", scores["iou_per_class"][1])

(root / "overlays").mkdir(exist_ok=True)
for photo in sorted((root / "images").iterdir()):
    image = read_image(str(photo))
    drawn = deeplab_tf.overlay(image, model.predict_labels(image), info)
    Image.fromarray(drawn).save(root / "overlays" / f"{photo.stem}.png")
