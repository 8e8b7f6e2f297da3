r"""Predicts label maps for images or a video.

    python -m deeplab_tf.predict --model=logs --images='photos/*.jpg' --output_dir=out
    python -m deeplab_tf.predict --model=logs --video=drive.mp4 --output_dir=out

For photo.jpg, it writes photo_label.png (class ids), photo_color.png (the same with a
palette, as in VOC) and photo_overlay.png (the image, overlaid with class colours, and a
legend); overview.png shows the first overlays. Labels of a GeoTIFF are also written as
photo_label.tif. Folders are searched recursively, and --output_dir gets the same
subfolders. Images are read as for training, with EXIF rotation applied.

For drive.mp4, it writes drive_overlay.mp4. A camera, such as --video=0, runs until
--max_frames or Ctrl-C.

--submission and --submission_file pack the label maps of the images in --image_list for
a benchmark server.

    deeplab-predict --model=export --images=photos --output_dir=out \
      --runner=DirectRunner -- --direct_running_mode=multi_processing \
      --direct_num_workers=8

labels images on a runner of Apache Beam. Broken images do not stop it: skipped.txt
lists them, and without --skip_broken the exit status is 1.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import EvalConfig
from deeplab_tf.config.options import DATA, EVALUATION, HARDWARE, OUTPUT
from deeplab_tf.errors import UserError
from deeplab_tf.programs import runners
from deeplab_tf.serving.choices import require_engine

# Keys of `evaluation.submission.SUBMISSIONS`, which needs TensorFlow.
_SUBMISSIONS = ("cityscapes", "pascal_voc_seg")
_START = {
    "model": (
        *(flags.required_string, None),
        "Training folder, checkpoint, SavedModel, Keras, TFLite, ONNX or OpenVINO "
        "file.",
    ),
    "images": (flags.STRING, None, "File, folder or glob of images."),
    "video": (flags.STRING, None, "Video file, or camera number."),
    "output_dir": (flags.STRING, None, "Folder to write to."),
}
_DATA = {
    "image_list": (
        *(flags.STRING, None),
        "Text file with the names of the --images to label; default: all.",
    ),
    "dataset": (
        *(flags.STRING, None),
        "Dataset with the class names and colours to show; default: the model's.",
    ),
    "skip_broken": (
        *(flags.BOOLEAN, False),
        "List broken images in skipped.txt and label the rest.",
    ),
    "max_frames": (flags.at_least(1), None, "Stop a video after this many frames."),
}
_HARDWARE = {
    "batch_size": (
        *(flags.at_least(1), 1),
        "Images of one size, or frames, per forward pass. Rounding may change a few "
        "pixels per million.",
    ),
}
_OUTPUT = {
    "submission": (
        *(flags.one_of(*_SUBMISSIONS), None),
        "Benchmark whose server evaluates the label maps of --images.",
    ),
    "submission_file": (
        *(flags.STRING, None),
        "Archive to write for --submission.",
    ),
    "html": (
        *(flags.BOOLEAN, False),
        "Also write predictions.html, one page with all --images and their labels.",
    ),
    "save_frames": (
        *(flags.BOOLEAN, False),
        "Also write the labels of every frame, as a PNG with a palette.",
    ),
}
# Flags that have no effect without another flag.
_NEEDS = {
    "runner": "images",
    "image_list": "images",
    "submission": "images",
    "submission_file": "submission",
    "skip_broken": "images",
    "html": "images",
    "max_frames": "video",
    "save_frames": "video",
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _START)
    flags.define_flags(values, _DATA, DATA)
    flags.define_model_flags(values, "predict")
    flags.define_options(values, EvalConfig, EVALUATION, flags.INFERENCE)
    flags.define_flags(values, _HARDWARE, HARDWARE)
    runners.define_flags(values)
    flags.define_flags(values, _OUTPUT, OUTPUT)
    flags.define_overwrite(values)
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError for flags that are invalid or contradict each other."""
    flags.read_preset(values)
    require_engine(values.model)
    if bool(values.images) == bool(values.video):
        received = "both" if values.images else "neither"
        raise UserError(f"give --images or --video; received {received}")
    for name, other in _NEEDS.items():
        if values[name].value and not values[other].value:
            raise UserError(f"--{name} has no effect without --{other}")
    if values.html and not values.output_dir:
        raise UserError("--html needs --output_dir: the folder of predictions.html")
    if values.submission and not values.submission_file:
        raise UserError("--submission needs --submission_file: the archive to write")
    if not values.output_dir and not values.submission:
        raise UserError("--output_dir is required: the folder to write to")
    runners.check(values, ("html", "submission"))


def has_frozen_weights(values: absl_flags.FlagValues) -> bool:
    """Returns whether weights are loaded only once."""
    return True


def main(values: absl_flags.FlagValues) -> None:
    """Labels every image or frame."""
    from deeplab_tf.programs import prediction

    prediction.main(values)
