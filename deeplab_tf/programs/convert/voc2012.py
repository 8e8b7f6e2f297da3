r"""Converts PASCAL VOC 2012, or any folder in its layout, to TFRecords.

    deeplab-convert voc2012 --voc_root=VOCdevkit/VOC2012 --output_dir=tfrecord

The splits are those of ImageSets/Segmentation: train, val and trainval with labels from
SegmentationClass, and train_aug (trainaug.txt) with labels from SegmentationClassAug if
both exist. All files are validated before the first shard is published. For classes
other than VOC's, put a dataset_info.json into the folder.

    deeplab-convert voc2012 --download --output_dir=tfrecord
    deeplab-convert voc2012 --voc_archive=VOCtrainval_11-May-2012.tar \
      --sbd_archive=benchmark.tgz --output_dir=tfrecord

These create the same splits from the two official archives: train_aug is VOC's train
followed by the other images of the Semantic Boundaries Dataset (SBD), in alphabetical
order and without VOC's val. --download fetches the archives you do not give, about
3.4 GB in total.
"""

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.convert import voc_sources
from deeplab_tf.errors import UserError
from deeplab_tf.programs.convert import output

_FLAGS = {
    "voc_root": (flags.STRING, None, "Folder with JPEGImages."),
    "voc_archive": (flags.STRING, None, "Path of VOCtrainval_11-May-2012.tar."),
    "sbd_archive": (flags.STRING, None, "Path of SBD's benchmark.tgz."),
    "download": (flags.BOOLEAN, False, "Download the archives you do not give."),
}
_DETAILS = {
    "voc_url": (flags.STRING, voc_sources.VOC_SOURCE.url, "URL of the VOC archive."),
    "sbd_url": (flags.STRING, voc_sources.SBD_SOURCE.url, "URL of the SBD archive."),
    "work_dir": (
        *(flags.STRING, None),
        "Folder for downloaded and extracted files, about 6 GB, which you may delete "
        "afterwards; default: OUTPUT_DIR_sources.",
    ),
    "official_sizes": (
        *(flags.BOOLEAN, True),
        "Refuse archives whose splits do not have the official sizes.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    return output.define_flags(_FLAGS, 4, _DETAILS)


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError unless there is either a folder or archives."""
    output.check(values)
    from_archives = values.voc_archive or values.sbd_archive or values.download
    if bool(values.voc_root) == bool(from_archives):
        received = "both" if from_archives else "neither"
        raise UserError(
            "give either --voc_root or the archives (--voc_archive and --sbd_archive, "
            f"or --download); received {received}"
        )


def main(values: absl_flags.FlagValues) -> None:
    """Converts the dataset and prints the split sizes."""
    from deeplab_tf.convert import voc2012
    from deeplab_tf.data import records

    output.claim(values)
    run = output.read_run_options(values)
    if not values.voc_root:
        sizes = voc2012.convert_archives(
            *_choose_archives(values),
            values.output_dir,
            values.work_dir,
            values.num_shards,
            values.official_sizes,
            run,
        )
    else:
        sizes = voc2012.convert(
            values.voc_root, values.output_dir, values.num_shards, run=run
        )
    hashes = records.read_info(values.output_dir).content_hashes
    for split in sizes:
        print(f"content hash of {split}: {hashes[split]}")
    output.print_sizes(values.output_dir, sizes)


def _choose_archives(
    values: absl_flags.FlagValues,
) -> tuple[str | voc_sources.Source, str | voc_sources.Source]:
    """Returns the path or the download source of both archives."""
    sources = {"voc": voc_sources.VOC_SOURCE, "sbd": voc_sources.SBD_SOURCE}
    found = []
    for name, source in sources.items():
        path = values[f"{name}_archive"].value
        if not path and not values.download:
            raise UserError(
                f"--{name}_archive is missing: give the path of that archive too, or "
                "--download to fetch it"
            )
        found.append(path or source._replace(url=values[f"{name}_url"].value))
    return tuple(found)
