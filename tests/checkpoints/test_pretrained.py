"""Models from names, paths and URLs: functional, trainable and complete."""

import dataclasses
import os
import pathlib
import shutil
import socket
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from shallow_network import shallow_mobilenet_v2
from small_zoo import MODEL, REAL, add_real_checkpoint, add_tiny_checkpoint, pack

import deeplab_tf
from deeplab_tf.checkpoints import pretrained
from deeplab_tf.checkpoints.restore import tf1_variables
from deeplab_tf.checkpoints.tf1 import read_variables, save_tf1_checkpoint
from deeplab_tf.checkpoints.zoo import ZOO
from deeplab_tf.config import DecoderConfig, Experiment, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import DeepLab, build_model
from deeplab_tf.training.resume import write_experiment

LOGITS = ("logits/semantic/weights", "logits/semantic/biases")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A temporary cache, so that no real one is used."""
    monkeypatch.setenv("DEEPLAB_TF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The weights of the checkpoint `tiny` in a zoo at `tmp_path/zoo`."""
    return add_tiny_checkpoint(monkeypatch, tmp_path)


@pytest.fixture
def archive(tiny, tmp_path):
    return tmp_path / "zoo/tiny.tar.gz"


def assert_refused(message, source, **options):
    """Asserts that loading fails with a message of one line."""
    with pytest.raises(UserError, match=message) as error:
        deeplab_tf.from_pretrained(source, **options)
    assert "\n" not in str(error.value)


def assert_found(source, arrays):
    """Asserts that `from_pretrained` would load these weights from a source."""
    found = read_variables(pretrained.find_weights(source))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def find_differing(model, arrays):
    """Returns the names of variables whose values differ from `arrays`."""
    found = tf1_variables(model)
    assert set(found) == set(arrays)
    return {n for n, a in arrays.items() if not np.array_equal(found[n], a)}


def test_official_checkpoint_is_loaded_by_name(
    voc_checkpoint, monkeypatch, tmp_path, cache
):
    packed = add_real_checkpoint(monkeypatch, tmp_path, os.path.dirname(voc_checkpoint))
    model = deeplab_tf.from_pretrained(REAL)
    expected = read_variables(voc_checkpoint)
    assert set(expected) >= set(tf1_variables(model))
    expected = {name: expected[name] for name in tf1_variables(model)}
    assert find_differing(model, expected) == set()
    assert model.model_config == ZOO[REAL].preset.model
    assert type(model) is DeepLab and model.trainable
    trained = [name for name in expected if "/moving_" not in name]
    assert len(model.trainable_variables) == len(trained) > 100
    packed.unlink()  # the zoo is gone; the cache is used
    again = deeplab_tf.from_pretrained(REAL, output_stride=16)
    assert find_differing(again, expected) == set()
    assert again.model_config == ZOO[REAL].preset.model.at_output_stride(16)


def test_weights_are_found_by_name_or_path(tiny, archive, tiny_export, tmp_path):
    made = str(tmp_path / "made/model.ckpt-30000")
    for source in ("tiny", str(archive), f"file://{archive}"):
        found = pretrained.find_weights(source)
        assert found.endswith(".extracted/some_folder/model.ckpt-30000")
        arrays = read_variables(found)
        assert all(np.array_equal(arrays[name], a) for name, a in tiny.items())
    assert pretrained.find_weights(str(tmp_path / "made")) == made
    assert pretrained.find_weights(made) == made
    found = pretrained.find_weights(tiny_export)
    assert found == f"{tiny_export}/assets.extra/model.ckpt"
    with pytest.raises(UserError, match="similar: tiny;"):
        pretrained.find_weights("tinny")


def test_archive_without_the_published_digest_is_refused(
    voc_checkpoint, cache, monkeypatch
):
    source = os.path.dirname(voc_checkpoint)
    published = ZOO[REAL]
    add_real_checkpoint(monkeypatch, cache.parent, source)
    monkeypatch.setitem(ZOO, REAL, published)
    assert_refused(rf"SHA-256 .* but {published.sha256} was published; ", REAL)
    assert [n for n in os.listdir(cache) if not n.endswith(".lock")] == []


def test_new_class_count_reinitializes_only_the_logits(tiny, capsys):
    model = deeplab_tf.from_pretrained("tiny", num_classes=3, output_stride=8)
    expected = dataclasses.replace(MODEL, num_classes=3).at_output_stride(8)
    assert model.model_config == expected
    assert model.output_shape[-1] == 3
    assert find_differing(model, tiny) == set(LOGITS)
    skipped = "2 skipped because of their shape (logits/semantic/weights 1x1x16x21 into"
    assert f"{skipped} 1x1x16x3" in capsys.readouterr().out
    deeplab_tf.from_pretrained("tiny", num_classes=21)
    assert "skipped" not in capsys.readouterr().out


def test_cache_dir_is_used(tiny, tmp_path, cache):
    deeplab_tf.from_pretrained("tiny", cache_dir=str(tmp_path / "mine"))
    assert (tmp_path / "mine/tiny.tar.gz").exists()
    assert not cache.exists()


def test_hidden_macos_files_are_ignored(tiny, archive, tmp_path):
    for name in ("._model.ckpt-30000.index", "._frozen_inference_graph.pb"):
        (tmp_path / "made" / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "made/frozen_inference_graph.pb").write_bytes(b"of no interest")
    pack(archive, tmp_path / "made")
    assert find_differing(deeplab_tf.from_pretrained("tiny"), tiny) == set()


@pytest.mark.parametrize("damage", ["truncated", "captive portal page"])
def test_damaged_download_is_not_kept(tiny, archive, cache, damage):
    intact = archive.read_bytes()
    half = intact[: len(intact) // 2]
    archive.write_bytes(half if damage == "truncated" else b"<html>login</html>")
    message = (
        rf"^tiny.tar.gz is damaged or .*; downloaded from file://{archive}, not kept"
    )
    assert_refused(message, "tiny")
    assert [n for n in os.listdir(cache) if not n.endswith(".lock")] == []
    archive.write_bytes(intact)
    assert_found("tiny", tiny)


def test_error_does_not_suggest_removing_user_archives(tmp_path):
    (tmp_path / "own.tgz").write_bytes(b"damaged")
    assert_refused(
        "own.tgz cannot be extracted: it is not a tar archive$",
        str(tmp_path / "own.tgz"),
    )


def test_unusable_cache_error_names_the_path(tiny, tmp_path, archive):
    (tmp_path / "file").write_bytes(b"")
    path = str(tmp_path / "file")
    message = rf"{path}.*; give a different folder as cache_dir or DEEPLAB_TF_CACHE$"
    for source in ("tiny", str(archive)):
        assert_refused(message, source, cache_dir=path)
    (tmp_path / "folder/tiny.tar.gz").mkdir(parents=True)
    message = f"{tmp_path}/folder/tiny.tar.gz is a folder, not a regular file; remove"
    assert_refused(message, "tiny", cache_dir=str(tmp_path / "folder"))


@pytest.mark.parametrize("kind", ["name", "path", "url"])
def test_cache_writable_by_others_is_refused(tiny, archive, cache, kind):
    cache.mkdir()
    cache.chmod(0o777)
    sources = {"name": "tiny", "path": str(archive), "url": "http://127.0.0.1:1/a.tgz"}
    assert_refused(
        f"other users can write to the cache {cache}; run chmod", sources[kind]
    )
    assert os.listdir(cache) == []


def test_modified_file_in_the_cache_is_extracted_again(tiny, archive, cache):
    found = pretrained.find_weights("tiny")
    index = pathlib.Path(f"{found}.index")
    intact = index.read_bytes()
    index.write_bytes(b"evil")
    assert pretrained.find_weights("tiny") == found
    assert index.read_bytes() == intact
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("evil", ["../evil", "some_folder/../../../evil", "/tmp/evil"])
def test_archive_with_unsafe_paths_is_refused(archive, evil, tmp_path):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made", "some_folder")
        tar.addfile(tarfile.TarInfo(evil))
    assert_refused(
        f"tiny.tar.gz is damaged or unsafe: its member {evil} .*not kept", "tiny"
    )
    own = tmp_path / "own.tar.gz"
    archive.rename(own)
    assert_refused(f"own.tar.gz cannot be extracted: its member {evil} ", str(own))
    assert list(tmp_path.rglob("*evil*")) == []
    assert [path.suffix for path in tmp_path.rglob("*extracted*")] == [".lock"]


def test_archive_without_weights_is_refused(tiny, archive, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("no weights")
    pack(archive, tmp_path / "texts")
    assert_refused(
        "tiny.tar.gz contains no checkpoint, frozen graph, TFLite file or SavedModel",
        "tiny",
    )


def test_archive_of_several_checkpoints_is_refused(tiny, archive, tmp_path):
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("a", "b/c"):
            tar.add(tmp_path / "made", name)
    assert_refused(
        r"tiny.tar.gz contains several checkpoints \(a, b/c\); extract it", "tiny"
    )


def test_checkpoint_of_a_different_model_is_refused(tiny, archive, tmp_path):
    shutil.rmtree(tmp_path / "made")
    other = dataclasses.replace(MODEL, decoder=DecoderConfig(output_strides=()))
    save_tf1_checkpoint(build_model(other), str(tmp_path / "made/model.ckpt"))
    pack(archive, tmp_path / "made")
    assert_refused(r"is not a checkpoint of this mobilenet_v2 .*: .* missing", "tiny")
    assert_refused(r"is not a checkpoint of this .*: .* missing", "tiny", num_classes=3)


def test_offline_error_says_where_to_put_the_file(tiny, monkeypatch, cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv(
            "DEEPLAB_TF_ZOO", f"http://127.0.0.1:{closed.getsockname()[1]}"
        )
    assert_refused(
        rf"cannot be downloaded: .*save the file as {cache}/tiny.tar.gz$", "tiny"
    )


def test_unknown_names_and_paths_are_refused(tmp_path):
    assert_refused(r"called \S+; similar: xception65_", "xception65_coco_voc")
    assert_refused(r"^no checkpoint .*nothing/here", str(tmp_path / "nothing/here"))
    assert_refused(
        r"^there is no archive .*none.tar.gz$", str(tmp_path / "none.tar.gz")
    )
    assert_refused(r"^s3://a/b cannot be read: .*'s3' not implemented", "s3://a/b")
    assert_refused(r"^http://\[::1/x is not a valid URL: Invalid IPv6", "http://[::1/x")
    expected = "name_path_or_url must be a model zoo checkpoint, a path or a URL"
    assert_refused(f"^{expected}; received ''$", "")


def test_invalid_options_are_refused_before_downloading(tiny, cache):
    for source in ("tiny", "https://example.org/some.tar.gz"):
        assert_refused(
            "^output_stride must be .*; received 7$", source, output_stride=7
        )
        assert_refused(
            "^num_classes must be at least 1 .*; received 0$",
            source,
            num_classes=0,
        )
        assert_refused(
            "^num_classes must be an integer; received '3'$",
            source,
            num_classes="3",
        )
    assert not cache.exists()


def test_local_folder_takes_precedence_over_the_zoo(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(MODEL, num_classes=4)
    save_tf1_checkpoint(build_model(config), str(tmp_path / "tiny/model.ckpt"))
    write_experiment(Experiment(model=config), str(tmp_path / "tiny"))
    assert deeplab_tf.from_pretrained("tiny").model_config == config
    printed = capsys.readouterr().out
    assert f"note: using {tmp_path}/tiny, not the zoo model tiny" in printed


def test_equivalent_paths_load_the_same_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_experiment(Experiment(model=MODEL), str(tmp_path / "made"))
    (tmp_path / "made").rename(tmp_path / "a folder.tar")
    folder = tmp_path / "a folder.tar"
    assert find_differing(deeplab_tf.from_pretrained(folder), tiny) == set()
    for source in ("~/a folder.tar", folder.as_uri(), f"{folder}/model.ckpt-30000"):
        assert_found(source, tiny)


@pytest.mark.parametrize("folder", ["ram://test_pretrained/logs", None])
def test_model_is_loaded_from_a_training_folder(folder, tmp_path, tiny):
    folder = folder or str(tmp_path / "logs")
    config = dataclasses.replace(MODEL, num_classes=4)
    model = build_model(config)
    save_tf1_checkpoint(model, f"{folder}/model.ckpt-7")
    write_experiment(Experiment(model=config), folder)
    again = deeplab_tf.from_pretrained(folder)
    assert again.model_config == config
    assert find_differing(again, tf1_variables(model)) == set()
    other_classes = deeplab_tf.from_pretrained(f"{folder}/model.ckpt-7", num_classes=2)
    assert other_classes.model_config == dataclasses.replace(config, num_classes=2)
    assert find_differing(other_classes, tf1_variables(model)) == set(LOGITS)


def test_model_is_inferred_from_variables(tiny, tmp_path, capsys):
    model = deeplab_tf.from_pretrained(str(tmp_path / "made"))
    assert model.model_config == MODEL
    assert find_differing(model, tiny) == set()
    printed = capsys.readouterr().out
    assert "match mobilenet_v2 with output_stride 16 and atrous_rates [6]" in (printed)
    fewer = dataclasses.replace(MODEL, num_classes=5)
    save_tf1_checkpoint(build_model(fewer), str(tmp_path / "own/model.ckpt"))
    assert deeplab_tf.from_pretrained(str(tmp_path / "own")).model_config == fewer


def test_checkpoint_of_an_unknown_model_is_refused(tiny, tmp_path):
    config = ModelConfig(depth_multiplier=0.2)
    save_tf1_checkpoint(build_model(config), str(tmp_path / "own/model.ckpt"))
    assert_refused(
        r"own/model.ckpt has no experiment.json next to it, and its variables match no",
        str(tmp_path / "own"),
    )


def test_candidates_have_distinct_variables():
    # VOC and Cityscapes, train and trainval, 8 bit and not, have equal variables.
    without = pretrained.find_candidate_configs({"MobilenetV2/Conv/weights": None})
    assert [model.depth_multiplier for model in without] == [0.5, 1.0]
    decoder = {"decoder/decoder_conv0_pointwise/weights": None}
    assert (
        len(pretrained.find_candidate_configs({"MobilenetV2/a": None} | decoder)) == 1
    )
    assert (
        len(pretrained.find_candidate_configs({"xception_65/a": None} | decoder)) == 1
    )
    assert len(pretrained.find_candidate_configs({"MobilenetEdgeTPU/a": None})) == 2


def test_model_is_inferred_from_an_official_frozen_graph(asset):
    folder = str(asset("weights/mobilenet_v3_small_lraspp_frozen"))
    model = deeplab_tf.from_pretrained(folder)
    zoo = ZOO["mobilenetv3_small_cityscapes_trainfine"].preset.model
    flags = {"num_classes": 5, "image_pooling_crop_size": "385,769"}
    assert model.model_config == zoo.with_official_flags(flags)
    other_classes = deeplab_tf.from_pretrained(folder, num_classes=2)
    # Without a logits layer the last two decoder layers give the logits, as a sum.
    unexpected = {
        name
        for name in find_differing_shapes(other_classes, tf1_variables(model))
        if not name.startswith(("decoder/decoder_conv", "decoder/feature_projection"))
    }
    assert unexpected == set()
    assert other_classes.output_shape[-1] == 2


def find_differing_shapes(model, arrays):
    found = tf1_variables(model)
    same = {n for n, a in arrays.items() if found[n].shape == a.shape}
    assert all(np.array_equal(found[n], arrays[n]) for n in same)
    return set(arrays) - same


def test_local_archives_are_loaded_by_path_or_url(tiny, tmp_path, cache, monkeypatch):
    own = tmp_path / "own.tgz"
    write_experiment(Experiment(model=MODEL), str(tmp_path / "made"))
    pack(own, tmp_path / "made")
    monkeypatch.chdir(tmp_path)
    assert find_differing(deeplab_tf.from_pretrained("own.tgz"), tiny) == set()
    for source in (str(own), own.as_uri()):
        assert_found(source, tiny)
    # A file of that name elsewhere is a different checkpoint, and so is a newer one.
    model = build_model(MODEL)
    save_tf1_checkpoint(model, str(tmp_path / "made/model.ckpt-30000"))
    pack(tmp_path / "other/own.tgz", tmp_path / "made")
    pack(own, tmp_path / "made")
    for source in ("other/own.tgz", "own.tgz", own.as_uri()):
        assert_found(source, tf1_variables(model))
    assert list(cache.rglob("*.tgz")) == []  # user archives are not copied


def test_zoo_archive_from_another_url_is_recognized(tiny, archive, capsys):
    assert find_differing(deeplab_tf.from_pretrained(archive.as_uri()), tiny) == set()
    assert "its variables match" not in capsys.readouterr().out


def write_backbone_only(monkeypatch, tmp_path, without=""):
    """Turns "tiny" into a classifier, without variables that contain `without`."""
    arrays = add_tiny_checkpoint(monkeypatch, tmp_path, miou=None)
    kept = {
        name: array
        for name, array in arrays.items()
        if name.startswith("MobilenetV2/") and not (without and without in name)
    }
    kept["MobilenetV2/Logits/Conv2d_1c_1x1/biases"] = np.zeros(1001, np.float32)
    shutil.rmtree(tmp_path / "made")
    os.makedirs(tmp_path / "made")
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "made/model.ckpt"),
        tensor_names=list(kept),
        shape_and_slices=[""] * len(kept),
        tensors=list(map(tf.constant, kept.values())),
    )
    pack(tmp_path / "zoo/tiny.tar.gz", tmp_path / "made")
    return arrays


def test_backbone_gets_a_new_head(monkeypatch, tmp_path, capsys):
    arrays = write_backbone_only(monkeypatch, tmp_path)
    model = deeplab_tf.from_pretrained("tiny", num_classes=3)
    found = tf1_variables(model)
    backbone = [name for name in arrays if name.startswith("MobilenetV2/")]
    assert len(backbone) == 75  # of a convolution and five blocks
    assert all(np.array_equal(found[name], arrays[name]) for name in backbone)
    assert found[LOGITS[1]].shape == (3,)
    printed = capsys.readouterr().out
    assert f"{len(backbone)} restored" in printed
    assert "1 not in the model (MobilenetV2/Logits/Conv2d_1c_1x1/biases)" in printed


def test_error_for_a_backbone_folder_suggests_its_name(monkeypatch, tmp_path):
    write_backbone_only(monkeypatch, tmp_path)
    assert_refused(
        "made/model.ckpt has no .* for a backbone in the zoo, give its name: tiny$",
        str(tmp_path / "made"),
    )


def test_incomplete_backbone_is_refused(monkeypatch, tmp_path):
    write_backbone_only(monkeypatch, tmp_path, without="expanded_conv_3/")
    assert_refused(r"lacks part of the backbone: .*expanded_conv_3/", "tiny")


def test_model_is_loaded_from_an_export(tmp_path, tiny_model, tiny_export):
    arrays = tf1_variables(tiny_model)
    archive = pack(tmp_path / "export.tar.gz", tiny_export)
    with shallow_mobilenet_v2():
        model = deeplab_tf.from_pretrained(tiny_export)
        other_classes = deeplab_tf.from_pretrained(
            str(archive), num_classes=3, output_stride=8
        )
    assert model.model_config == tiny_model.model_config
    assert find_differing(model, arrays) == set()
    assert find_differing(other_classes, arrays) == set(LOGITS)


@pytest.mark.parametrize(
    ("name", "part"),
    [("model.json", "model config"), ("model.ckpt.index", "weights")],
)
def test_incomplete_export_is_refused(name, part, tiny_export, tmp_path):
    path = tmp_path / "export"
    shutil.copytree(tiny_export, path)
    (path / "assets.extra" / name).unlink()
    assert_refused(
        rf"was exported without its {part} \(.*{name} is missing\); g",
        str(path),
    )


def test_error_names_invalid_model_json_of_an_export(tiny_export, tmp_path):
    path = tmp_path / "export"
    shutil.copytree(tiny_export, path)
    (path / "assets.extra/model.json").write_text("{")
    assert_refused("model.json: line 1, column 2: ", str(path))
