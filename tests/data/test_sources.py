"""Opens splits and resolves their DatasetInfo."""

import pytest
from record_files import write_shards

from deeplab_tf.data import records, sources
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.errors import UserError

INFO = DatasetInfo("toys", ("floor", "ball"), ignore_label=9)


def test_dataset_info_file_is_used_and_conflicts_are_refused(tmp_path):
    folder = str(tmp_path)
    assert sources.resolve_info(None, folder) == dataset_info("pascal_voc_seg")
    assert sources.resolve_info("camvid", folder) == dataset_info("camvid")
    with pytest.raises(UserError, match=r"'coco'; .* must be one of pascal_voc_seg, "):
        sources.resolve_info("coco", folder)
    records.write_info(INFO, folder)
    assert sources.resolve_info(None, folder) == INFO
    assert sources.resolve_info("toys", folder) == INFO
    with pytest.raises(
        UserError, match=r"--dataset=camvid contradicts .*, which names toys"
    ):
        sources.resolve_info("camvid", folder)


def test_split_is_opened_with_its_info(tmp_path):
    folder = write_shards(tmp_path, b"a", b"b", split="val", shards=2)
    records.write_info(INFO, folder)
    source = sources.open_split(None, folder, "val")
    assert source.info == INFO and source.keys == records.OFFICIAL_KEYS
    assert len(source.index) == 2


def test_split_of_empty_shards_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=f"the val shards in {tmp_path} contain no records"
    ):
        sources.open_split(None, write_shards(tmp_path, split="val"), "val")
