"""The official archives of PASCAL VOC 2012 and SBD."""

from typing import NamedTuple


class Source(NamedTuple):
    """The location of an archive and its hexadecimal checksums, "" if unknown.

    The URL is http, https or a path that `tf.io.gfile` copies.
    """

    url: str
    sha256: str = ""
    md5: str = ""


# The SHA-256 is from TensorFlow Datasets (url_checksums/voc.txt).
VOC_SOURCE = Source(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
SBD_SOURCE = Source(
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
)
