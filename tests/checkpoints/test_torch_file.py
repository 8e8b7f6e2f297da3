"""PyTorch weights are read bit for bit, without PyTorch."""

import argparse
import collections
import json

import numpy as np
import pytest
import tensorflow as tf
from torch_files import (
    STORAGES,
    Call,
    Global,
    Raw,
    Reference,
    make_tensor,
    write_legacy,
    write_safetensors,
    write_zip,
)

from deeplab_tf.checkpoints.pytorch.weights import is_torch_file, read_torch_file
from deeplab_tf.errors import UserError

SIX = np.arange(6, dtype=np.float32)
FORMATS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture(params=FORMATS)
def write(request, tmp_path):
    """A function that writes an object and its storages to a file of each format."""
    writer = FORMATS[request.param]
    return lambda root, storages: writer(tmp_path / "a.pth", root, storages)


def write_six(write, root):
    """Writes an object whose tensors share a storage with the numbers 0 to 5."""
    return write(root, {"0": SIX.tobytes()})


def equal(array, expected):
    expected = np.asarray(expected)
    same = array.dtype == expected.dtype and array.shape == expected.shape
    return same and array.tobytes() == expected.tobytes()


def test_tensors_are_slices_of_a_storage(write):
    path = write_six(
        write,
        {
            "contiguous": make_tensor((2, 3)),
            "transposed": make_tensor((3, 2), strides=(1, 3)),
            "part": make_tensor((2,), size=6, offset=3, strides=(2,)),
            "scalar": make_tensor((), size=6, offset=5),
            "empty": make_tensor((0, 3), size=6),
            "repeated": make_tensor((2, 3), size=6, strides=(0, 1)),
        },
    )
    found = read_torch_file(path)
    assert found.path == str(path)
    assert found.description == {}
    expected = {
        "contiguous": SIX.reshape(2, 3),
        "transposed": SIX.reshape(2, 3).T,
        "part": SIX[3:6:2],
        "scalar": SIX[5],
        "empty": np.zeros((0, 3), np.float32),
        "repeated": np.stack([SIX[:3], SIX[:3]]),
    }
    assert list(found.arrays) == list(expected)
    for name, array in expected.items():
        assert equal(found.arrays[name], array), name


@pytest.mark.parametrize("dtype", sorted(set(STORAGES) - {"bfloat16"}))
def test_types_are_kept_except_half_precision(tmp_path, dtype):
    values = np.array([0, 1, 2.5, 200]).astype(dtype)
    path = write_zip(
        tmp_path / "a.pt", {"x": make_tensor((4,), dtype)}, {"0": values.tobytes()}
    )
    array = read_torch_file(path).arrays["x"]
    assert equal(array, values.astype("float32") if dtype == "float16" else values)


# The upper half of float32: 1.0, -2.0 and the largest finite number.
BFLOAT16 = np.array([0x3F80, 0xC000, 0x7F7F], "<u2").tobytes()
FLOAT32 = np.array([0x3F800000, 0xC0000000, 0x7F7F0000], "<u4").view("<f4")


def test_bfloat16_becomes_float32(tmp_path):
    root = {"x": make_tensor((3,), "bfloat16")}
    zipped = write_zip(tmp_path / "a.bin", root, {"0": BFLOAT16})
    tensors = {"x": ("BF16", [3], BFLOAT16)}
    safe = write_safetensors(tmp_path / "a.safetensors", tensors)
    for path in (zipped, safe):
        assert equal(read_torch_file(path).arrays["x"], FLOAT32)


def test_parameters_and_subclasses_are_tensors(write):
    tensor = make_tensor((6,))
    details = (False, Call(Global("collections", "OrderedDict"), ()))
    parameter = Global("torch._utils", "_rebuild_parameter")
    subclass = Global("torch._tensor", "_rebuild_from_type_v2")
    arguments = (tensor.function, Global("torch", "Tensor"), tensor.arguments, {})
    old = Call(Global("torch._utils", "_rebuild_tensor"), tensor.arguments[:4])
    root = {
        "parameter": Call(parameter, (tensor, *details)),
        "buffer": Call(subclass, arguments),
        "old": old,
    }
    arrays = read_torch_file(write_six(write, root)).arrays
    assert len(arrays) == 3
    assert all(equal(array, SIX) for array in arrays.values())


def test_storage_may_hold_another_type(tmp_path):
    bytes_ = Global("torch.storage", "UntypedStorage")
    hooks = Call(Global("collections", "OrderedDict"), ())
    arguments = (Reference(("storage", bytes_, "0", "cpu", 8)), 1, (3,), (1,))
    details = (False, hooks, Global("torch", "uint16"))
    function = Global("torch._utils", "_rebuild_tensor_v3")
    values = np.array([1, 2, 3, 65535], np.uint16)
    root = {"x": Call(function, (*arguments, *details))}
    path = write_zip(tmp_path / "a.pth", root, {"0": values.tobytes()})
    assert equal(read_torch_file(path).arrays["x"], values[1:])


# ---- Where the state dict is.

STATE = {"a.weight": make_tensor((2, 3)), "b": make_tensor((6,))}
NAMES = ["a.weight", "b"]
OTHER = {"c": make_tensor((6,))}


def prefix_names(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("root", "note"),
    [
        (STATE, ""),
        ({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: OTHER}}}, ""),
        ({"model_state_dict": STATE, "rng": make_tensor((6,))}, ""),
        ({"model": {"state_dict": STATE}}, ""),
        ({"my_model": STATE, "epoch": 3, "rng": make_tensor((6,))}, ""),
        ({"state_dict": prefix_names(STATE, "module."), "meta": {}}, ""),
        (prefix_names(STATE, "module._orig_mod.model."), ""),
        (
            {"state_dict": {**prefix_names(STATE, "model."), "loss.x": OTHER["c"]}},
            "",
        ),
        (
            {
                "model": OTHER,
                "model_ema": {**prefix_names(STATE, "module."), "n_averaged": None},
            },
            "using the weights in model_ema, not model\n",
        ),
        ({"state_dict": STATE, "ema_state_dict": OTHER}, "the weights in state_dict"),
    ],
)
def test_state_dict_is_found(write, capsys, root, note):
    path = write_six(write, root)
    assert list(read_torch_file(path).arrays) == NAMES
    out = capsys.readouterr().out
    assert note in out
    assert bool(note) == bool(out)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (
            {"epoch": 3, "random": [make_tensor((6,))]},
            r"no state dict, only the entries epoch, random; use torch\.save\(",
        ),
        ([make_tensor((6,))], "contains a list, not a state dict"),
        (make_tensor((6,)), "contains a tensor, not"),
        ({"encoder": STATE, "decoder": OTHER}, r"several state dicts \(encoder, deco"),
        ({"loss.weight": make_tensor((6,))}, "contains no tensors"),
    ],
)
def test_missing_state_dict_is_reported(write, root, message):
    assert_refused(write_six(write, root), message)


def assert_refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        read_torch_file(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert text.isprintable()


# ---- Folders of Hugging Face.


def write_folder(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def six_safetensors(path, *names):
    return write_safetensors(path, {n: ("F32", [2, 3], SIX.tobytes()) for n in names})


def test_folder_has_weights_and_description(tmp_path):
    described = {"model_type": "mobilenet_v2", "output_stride": 32}
    folder = write_folder(tmp_path / "hf", config__json=described)
    assert not is_torch_file(str(folder))
    write_six(lambda *args: write_zip(folder / "pytorch_model.bin", *args), STATE)
    found = read_torch_file(folder)
    assert (found.path, found.description) == (str(folder), described)
    assert list(found.arrays) == NAMES
    six_safetensors(folder / "model.safetensors", "preferred")
    assert list(read_torch_file(folder).arrays) == ["preferred"]
    assert is_torch_file(str(folder))


def test_shards_are_joined(tmp_path):
    shards = {"x": "model-1.safetensors", "y": "model-2.safetensors"}
    folder = write_folder(
        tmp_path / "hf", model__safetensors__index__json={"weight_map": shards}
    )
    six_safetensors(folder / "model-1.safetensors", "x")
    assert_refused(folder, r"model-2\.safetensors does not exist")
    six_safetensors(folder / "model-2.safetensors", "z")
    assert_refused(folder, r"model-2\.safetensors contains no y")
    six_safetensors(folder / "model-2.safetensors", "y")
    arrays = read_torch_file(folder).arrays
    assert list(arrays) == ["x", "y"]
    assert all(equal(array, SIX.reshape(2, 3)) for array in arrays.values())


@pytest.mark.parametrize("name", ["../x.safetensors", "a/x.bin", "x.txt", 3])
def test_shards_are_in_the_folder(tmp_path, name):
    index = {"weight_map": {"x": name}}
    folder = write_folder(tmp_path / "hf", pytorch_model__bin__index__json=index)
    assert_refused(folder, "weight_map must map")


def test_folder_without_weights_is_refused(tmp_path):
    assert_refused(tmp_path, r"contains neither model\.safetensors nor pytorch_model")


def test_names_of_torch_files():
    assert all(
        map(is_torch_file, ("a.pth", "a.pt", "a.pth.tar", "a.bin", "a.safetensors"))
    )
    assert not is_torch_file("a.keras")


def test_missing_and_special_files_are_refused(tmp_path, special_file):
    assert_refused(tmp_path / "a.pth", "does not exist")
    _, create = special_file
    create(tmp_path / "b.pth")
    assert_refused(tmp_path / "b.pth", "b.pth")


def test_remote_files_are_read(tmp_path):
    path = write_six(lambda *args: write_zip(tmp_path / "a.pth", *args), STATE)
    tf.io.gfile.copy(str(path), "ram://a.pth", overwrite=True)
    assert list(read_torch_file("ram://a.pth").arrays) == NAMES


# ---- Files of PyTorch itself.


def make_real_state(torch):
    """Returns a state dict of many types, with shared and non-contiguous tensors."""
    base = torch.arange(24.0).reshape(4, 6)
    return collections.OrderedDict(
        base=base,
        column=base[:, 2],
        permuted=torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
        channels_last=torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last),
        expanded=torch.randn(3, 1).expand(3, 7),
        parameter=torch.nn.Parameter(torch.randn(5)),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        **{
            str(dtype): torch.randint(0, 2, (3, 2)).to(dtype)
            for dtype in (
                *(torch.float16, torch.bfloat16, torch.float64, torch.int64),
                *(torch.int32, torch.int16, torch.int8, torch.bool, torch.uint8),
            )
        },
    )


def make_training_checkpoint(torch, state):
    """Returns a checkpoint with an optimiser, options and NumPy values."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "schedule": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2]).state_dict(),
        "args": argparse.Namespace(lr=0.1, layers={1, 2}),
        "random": [np.random.get_state(), torch.get_rng_state()],
        "best": np.float64(0.7),
        "logs": collections.defaultdict(list, loss=[np.float32(0.5), np.arange(3)]),
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
    }


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_files_of_pytorch_are_read_bit_for_bit(tmp_path, is_zip, protocol):
    torch = pytest.importorskip("torch")
    state = make_real_state(torch)
    options = {"_use_new_zipfile_serialization": is_zip, "pickle_protocol": protocol}
    for root in (state, make_training_checkpoint(torch, state)):
        torch.save(root, tmp_path / "a.pth", **options)
        arrays = read_torch_file(tmp_path / "a.pth").arrays
        assert list(arrays) == list(state)
        for name, tensor in state.items():
            is_half = tensor.dtype in (torch.float16, torch.bfloat16)
            expected = (tensor.float() if is_half else tensor).detach().numpy()
            assert equal(arrays[name], expected), name


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_pickled_modules_are_refused(tmp_path, is_zip):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save(torch.nn.Linear(2, 3), path, _use_new_zipfile_serialization=is_zip)
    assert_refused(
        path, r"contains torch\.nn\.modules\.linear\.Linear, .*save it again with torch"
    )


def test_logs_of_openmmlab_are_skipped(tmp_path):
    history = Global("mmengine.logging.history_buffer", "HistoryBuffer")
    made = Raw(
        b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}X\x01\0\0\0aK\x01sb"
    )
    method = Call(Global("builtins", "getattr"), (history, "min"))
    logs = {"a": made, "b": Call(history, ()), "c": method}
    root = {"state_dict": STATE, "message_hub": logs}
    path = write_six(lambda *args: write_zip(tmp_path / "a.pth", *args), root)
    assert list(read_torch_file(path).arrays) == NAMES
