"""Hostile and damaged files of PyTorch: one line, nothing executed, little memory."""

import copyreg
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from mutations import mutate_bytes
from torch_files import (
    Call,
    Global,
    Raw,
    Reference,
    dump,
    encode,
    make_tensor,
    write_legacy,
    write_safetensors,
    write_zip,
)

from deeplab_tf.checkpoints.pytorch import pickles
from deeplab_tf.checkpoints.pytorch.weights import read_torch_file
from deeplab_tf.errors import UserError

SIX = np.arange(6, dtype=np.float32)
STORAGES = {"0": SIX.tobytes()}
STATE = {"a": make_tensor((2, 3)), "b": make_tensor((6,))}
# Far above the size of the files, far below the claims in them.
MEMORY = 32 * 2**20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pth"


def assert_refused(path, message="cannot be read"):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            read_torch_file(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert str(path) in text
    assert len(text) < 600
    assert text.isprintable()


# ---- Pickles that run code: they make a folder when the module pickle reads them.

MKDIR = Global("os", "mkdir")
EXTENSION = 240


def attack_with_state(folder):
    """Makes an object whose state replaces the function that sets its state."""
    made = encode(Global("argparse", "Namespace")) + b")\x81"
    state = encode({"__setstate__": MKDIR})
    return made + state + b"b" + encode(folder) + b"b."


def attack_with_getattr(folder):
    module = Call(Global("builtins", "__import__"), ("os",))
    return dump(Call(Call(Global("builtins", "getattr"), (module, "mkdir")), (folder,)))


def attack_with_extension(size):
    code = {1: b"\x82", 2: b"\x83", 4: b"\x84"}[size]
    code += EXTENSION.to_bytes(size, "little")
    return lambda folder: code + encode((folder,)) + b"R."


def attack_with_class(opcode, *more):
    trap = encode(Global("torch_files", "Trap"))
    return lambda folder: trap + b"".join(map(encode, ((folder,), *more))) + opcode


ATTACKS = {
    "REDUCE": lambda folder: dump({"a": Call(MKDIR, (folder,))}),
    "STACK_GLOBAL": lambda folder: (
        encode("os") + encode("mkdir") + b"\x93" + encode((folder,)) + b"R."
    ),
    "INST": lambda folder: b"(" + encode(folder) + b"ios\nmkdir\n.",
    "OBJ": lambda folder: b"(" + encode(MKDIR) + encode(folder) + b"o.",
    "NEWOBJ": attack_with_class(b"\x81."),
    "NEWOBJ_EX": attack_with_class(b"\x92.", {"x": 1}),
    "BUILD": attack_with_state,
    "getattr": attack_with_getattr,
    "EXT1": attack_with_extension(1),
    "EXT2": attack_with_extension(2),
    "EXT4": attack_with_extension(4),
    # The result is dropped before a harmless object.
    "POP": lambda folder: encode(Call(MKDIR, (folder,))) + b"0" + dump(STATE),
    "persistent id": lambda folder: dump(
        Reference(("storage", MKDIR, folder, "cpu", 1))
    ),
}


class CarelessUnpickler(pickle.Unpickler):
    """Calls the class in a persistent id, except that of a storage."""

    def persistent_load(self, pid):
        return pid[1](pid[2]) if pid[1].__name__ == "mkdir" else None

    def find_class(self, module, name):
        if module.partition(".")[0] == "torch":
            return lambda *_: None
        return super().find_class(module, name)


@pytest.fixture
def extension():
    """Registers os.mkdir as an extension of pickle."""
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", EXTENSION)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", ATTACKS)
def test_code_is_not_executed(tmp_path, path, name):
    folder = tmp_path / "made"
    attack = ATTACKS[name](str(folder))
    path.write_bytes(attack)
    with path.open("rb") as file:
        CarelessUnpickler(file).load()
    folder.rmdir()  # so the attack works
    assert_refused(path)
    reason = rf"os\.mkdir|torch_files\.Trap|__import__|getattr|opcode {name}|storage"
    for write in (write_zip, write_legacy):
        assert_refused(write(path, attack, {}), reason)
    assert not folder.exists()


# ---- Claims of gigabytes, and pickles that take long or much memory.

TEN_GB = 10 * 2**30
LARGE = {
    "storage": (
        {"a": make_tensor((6,), size=TEN_GB // 4)},
        "storage has 24 bytes instead of 10,737,418,240",
    ),
    "strides of 0": (
        {"a": make_tensor((TEN_GB,), size=6, strides=(0,))},
        "need 42,949,672,960 bytes of memory, more than 8 times",
    ),
    "many tensors": (
        {str(i): make_tensor((2**20 + i,), size=6, strides=(0,)) for i in range(9)},
        "more than 8 times",
    ),
    "empty": ({"a": make_tensor((0, 2**59), size=6)}, ""),
    "dimensions": (
        {"a": make_tensor((1,) * 33, size=6)},
        "33 sizes and 33 strides",
    ),
}
# The names of opcodes, the opcodes that push a value, and the message.
PICKLES = {
    "BINBYTES8": (b"\x8e" + struct.pack("<Q", TEN_GB) + b"x", "more than 134,217,728"),
    "BINUNICODE": (b"X" + struct.pack("<I", 2**32 - 1), "more than 134,217,728 bytes"),
    "LONG4": (b"\x8b" + struct.pack("<i", 2**31 - 1), "more than 134,217,728 bytes"),
    "negative LONG4": (b"\x8b" + struct.pack("<i", -5), "pickle is invalid"),
    "INT": (b"I" + b"9" * 5000 + b"\n", "pickle is invalid"),
    "GET": (b"h\x07", r"pickle is invalid \(7\)"),
    "POP": (b"0000", "pickle is invalid"),
    "mark": (b"(", "pickle is invalid"),
    "BUILD": (b"K\x01}b", r"pickle is invalid \(a int\)"),
    "SETITEM": (b"NNNs", r"pickle is invalid \(a NoneType\)"),
    "odd items": (b"}(Nu", "pickle is invalid"),
    "unknown opcode": (b"\xff", "opcode b'.xff' unknown"),
    "text": (b"X\x01\0\0\0\xff", "pickle is invalid"),
    "call of a number": (b"K\x01)R", "is not a function"),
    "arguments": (encode(Call(Global("torch._utils", "_rebuild_tensor"), ())), "inva"),
    "PERSID": (b"Pa\n", "opcode PERSID"),
    "kind of storage": (
        encode(Reference(("module", 1, "a", "code", 2))),
        "contains a model with its code",
    ),
    "type of storage": (
        encode(Reference(("storage", Global("torch", "Size"), "a", "cpu", 1))),
        "pickle is invalid",
    ),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("name", LARGE)
def test_claims_of_gigabytes_are_refused(path, write, name):
    root, message = LARGE[name]
    if write is write_legacy and name == "storage":
        write(path, root, STORAGES, counts={"0": TEN_GB // 4})
        message = "truncated or damaged"
    else:
        write(path, root, STORAGES)
    if message:
        assert_refused(path, message)
    else:
        assert read_torch_file(path).arrays["a"].shape == (0, 2**59)


@pytest.mark.parametrize("name", PICKLES)
def test_invalid_pickles_are_refused(path, name):
    opcodes, message = PICKLES[name]
    for root in (Raw(opcodes), [Raw(opcodes)]):
        assert_refused(write_zip(path, root, {}), message)
    assert_refused(write_legacy(path, Raw(opcodes), {}), message)


def test_memo_index_needs_no_memory(path):
    put = b"r" + struct.pack("<I", 2**32 - 1)
    get = b"j" + struct.pack("<I", 2**32 - 1)
    root = Raw(encode(STATE) + put + b"0" + get)
    assert list(read_torch_file(write_zip(path, root, STORAGES)).arrays) == ["a", "b"]


def test_number_of_steps_is_limited(path, monkeypatch):
    monkeypatch.setattr(pickles, "_MAX_OPCODES", 5000)
    assert_refused(write_zip(path, Raw(b"N0" * 3000 + b"N"), {}), "more than 5,000 st")
    # A few calls with one large list.
    pairs = encode([("a", 1)] * 300) + b"q\x01"
    call = encode(Global("collections", "OrderedDict")) + b"h\x01\x85R"
    assert_refused(write_zip(path, Raw(pairs + call * 100), {}), "more than 5,000 st")


@pytest.mark.parametrize(
    ("opening", "closing"),
    [(b"](", b"e"), (b"(", b"t"), (b"}(K\x01", b"u"), (b"", b"\x85")],
    ids=["list", "tuple", "dict", "TUPLE1"],
)
def test_deep_nesting_is_read_or_refused(path, opening, closing):
    depth = 20_000
    deep = opening * depth + b"N" + closing * depth
    root = {"state_dict": STATE, "deep": Raw(deep)}
    assert list(read_torch_file(write_zip(path, root, STORAGES)).arrays) == ["a", "b"]
    assert_refused(write_zip(path, Raw(deep), {}))
    # As the key of a dict, which needs its hash.
    state = Raw(encode(STATE) + deep + b"Ns")
    assert list(read_torch_file(write_zip(path, state, STORAGES)).arrays) == ["a", "b"]


def test_nested_rebuilding_is_refused(path):
    function = Global("torch._tensor", "_rebuild_from_type_v2")
    arguments = b"(" + 3000 * (encode(function) + b"N(") + b"t" * 3000 + b"t"
    assert_refused(write_zip(path, Raw(encode(function) + arguments + b"R"), {}))


def test_keys_with_equal_hashes_are_quick(path):
    keys = [encode((2**61 - 1) * i) + b"N" for i in range(1, 20_000)]
    root = Raw(encode(STATE) + b"(" + b"".join(keys) + b"u")
    assert list(read_torch_file(write_zip(path, root, STORAGES)).arrays) == ["a", "b"]


# ---- Tensors outside their storage.


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (make_tensor((7,), size=6), "needs element 6 of a storage with 6"),
        (make_tensor((2,), size=6, offset=5), "needs element 6"),
        (make_tensor((2, 2), size=6, strides=(5, 1)), "needs element 6"),
        (make_tensor((), size=6, offset=6), "needs element 6"),
        (make_tensor((2,), size=6, offset=-1), "invalid offset, size or stride"),
        (make_tensor((2,), size=6, strides=(-1,)), "invalid offset, size or stride"),
        (make_tensor((-2,), size=6, strides=(1,)), "invalid offset, size or stride"),
        (make_tensor((2**70,), size=6, strides=(0,)), "invalid offset, size or stride"),
        (make_tensor((2, 3), size=6, strides=(1,)), "2 sizes and 1 strides"),
        (make_tensor(("2",), size=6, strides=(1,)), "invalid offset, size or stride"),
        (make_tensor((6,), details=({"neg": True},)), "conjugated or negated tensor"),
        (make_tensor((6,), size=-6), "invalid name or size"),
        (make_tensor((5,), size=5), "24 bytes instead of 20|truncated or damaged"),
        (make_tensor((6,), "float64"), "24 bytes instead of 48|truncated or damaged"),
        (make_tensor((6,), key="1"), "missing|list of storages"),
    ],
)
def test_invalid_tensors_are_refused(path, write, tensor, message):
    if write is write_legacy and "instead of 20" in message:
        pytest.skip("this format has one size of a storage")
    assert_refused(write(path, {"a": tensor}, STORAGES), message)


# ---- Zip archives.


def add_entry(path, name, data=b"x", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data, compression)


def repeat_entry(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        add_entry(path, "archive/data/0")


def compress(path):
    add_entry(path, "archive/data/1", bytes(10 * 2**20), zipfile.ZIP_DEFLATED)


def remove_data(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


def change_content(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(SIX.tobytes(), SIX[::-1].tobytes()))


CHANGES = {
    "repeated": (repeat_entry, "data/0 occurs twice"),
    "compressed": (compress, "is compressed"),
    "outside": (lambda p: add_entry(p, "../../etc/x"), "has an unsafe name"),
    "absolute": (lambda p: add_entry(p, "/etc/x"), "has an unsafe name"),
    "backslash": (lambda p: add_entry(p, "a\\..\\x"), "has an unsafe name"),
    "two": (lambda p: add_entry(p, "b/data.pkl"), "but not one that torch.save wrote"),
    "no data": (remove_data, "but not one that torch.save wrote"),
    "TorchScript": (lambda p: add_entry(p, "archive/constants.pkl"), "torch.jit.load"),
    "checksum": (change_content, "Bad CRC-32"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_unsafe_archives_are_refused(path, name):
    change, message = CHANGES[name]
    write_zip(path, STATE, STORAGES)
    change(path)
    assert_refused(path, message)


def test_storages_of_a_missing_entry_are_refused(path):
    write_zip(path, {"a": make_tensor((6,), key="../version")}, STORAGES)
    assert_refused(path, r"its entry data/\.\./version is missing")


def test_big_endian_files_are_refused(path):
    write_zip(path, STATE, STORAGES, byteorder=b"big")
    assert_refused(path, "saved on a big-endian machine")
    write_legacy(path, STATE, STORAGES, is_little=False)
    assert_refused(path, "saved on a big-endian machine")


# ---- Other files, and damage.


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid x\n", "run git lfs pull"),
        (b"\n <!DOCTYPE html>\n<html>", "is an HTML page; download the file itself"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "invalid|damaged"),
        (bytes(2**10), "invalid|damaged"),
        (b"PK\x03\x04" + bytes(99), "damaged"),
        (pickle.dumps({"a": 1}), "not one that torch.save wrote|damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, suffix, content, message):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert_refused(path, message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,99]}}', "damaged"),
        (b'{"a":{"dtype":"F32","shape":[7],"data_offsets":[0,24]}}', "damaged"),
        (b'{"a":{"dtype":"F32","shape":[-6],"data_offsets":[0,24]}}', "damaged"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[24,0]}}', "damaged"),
        (
            b'{"a":{"dtype":"F8_E4M3","shape":[24],"data_offsets":[0,24]}}',
            "lacks",
        ),
        (b'{"a":' * 10_000, "damaged"),
        (b"\xff", "damaged"),
        (b"{}", "damaged"),
    ],
)
def test_invalid_safetensors_are_refused(tmp_path, header, message):
    path = tmp_path / "a.safetensors"
    tensors = {"a": ("F32", [6], SIX.tobytes())}
    assert_refused(write_safetensors(path, tensors, header=header), message)


def test_length_of_a_safetensors_header_is_limited(tmp_path):
    path = tmp_path / "a.safetensors"
    for length in (TEN_GB, 2**64 - 1, 2**20):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        assert_refused(path, "header")


WRITERS = {
    "zip": lambda path: write_zip(path.with_suffix(".pth"), STATE, STORAGES),
    "legacy": lambda path: write_legacy(path.with_suffix(".pth"), STATE, STORAGES),
    "safetensors": lambda path: write_safetensors(
        path.with_suffix(".safetensors"), {"a": ("F32", [2, 3], SIX.tobytes())}
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_files_are_refused(path, name):
    path = WRITERS[name](path)
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        assert_refused(path)


@pytest.mark.parametrize("name", WRITERS)
def test_mutated_files_are_read_or_refused_in_one_line(path, name):
    path, rng = WRITERS[name](path), random.Random(0)
    content, refused = path.read_bytes(), 0
    for _ in range(150):
        path.write_bytes(mutate_bytes(content, rng)[0])
        try:
            read_torch_file(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
            assert str(error).isprintable()
    assert 0 < refused < 150
