"""Valid records, and mutations of records, images and files."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image
from record_files import encode_image

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.images import decoding
from deeplab_tf.images.decoding import EncodedImage

SIZES = ((17, 23), (23, 17), (17, 23))
CLASSES = ("floor", "ball", "cat")
INFOS = {
    "colour": DatasetInfo("colour", CLASSES),
    "planes": DatasetInfo("planes", CLASSES, channels=5, max_value=4095),
    "grey": DatasetInfo("grey", CLASSES, channels=1),
    "alpha": DatasetInfo("alpha", CLASSES, channels=4),
    "deep": DatasetInfo("deep", CLASSES, channels=3, max_value=65535),
}
KEYS = records.OFFICIAL_KEYS


# ---- Mutations of bytes. `random` is a random.Random.


def _span(content, random):
    """Returns two positions in the content, in order."""
    return sorted(random.randrange(len(content) + 1) for _ in range(2))


def flip_bits(content, random):
    content = bytearray(content)
    first, last = 0, len(content)
    if random.random() < 0.3:  # the header is small but important
        first = random.randrange(last)
        last = min(last, first + 32)
    for _ in range(random.randint(1, 8)):
        content[random.randrange(first, last)] ^= 1 << random.randrange(8)
    return bytes(content)


def truncate(content, random):
    return content[: random.randrange(len(content))]


def repeat_span(content, random):
    first, last = _span(content, random)
    return content[:last] + content[first:]


def remove_span(content, random):
    first, last = _span(content, random)
    return content[:first] + content[last:]


def swap_spans(content, random):
    a, b, c, d = sorted(random.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def append_bytes(content, random):
    return content + random.randbytes(random.choice((1, 7, 16, 400)))


def zero_span(content, random):
    first, last = _span(content, random)
    return content[:first] + bytes(last - first) + content[last:]


BYTE_MUTATIONS = (
    flip_bits,
    flip_bits,
    flip_bits,
    truncate,
    repeat_span,
    remove_span,
    swap_spans,
    append_bytes,
    zero_span,
)


def mutate_bytes(content, random):
    """Applies one of `BYTE_MUTATIONS`; returns the bytes and its name."""
    change = random.choice(BYTE_MUTATIONS)
    return change(content, random), change.__name__


def masked_crc(content):
    """Returns TFRecord's masked CRC32C."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame_record(record):
    """Returns a record with the length and checksums of its file."""
    length = struct.pack("<Q", len(record))
    return length + masked_crc(length) + record + masked_crc(record)


def _set_wrong_length(frame, random):
    """Returns a framed record with a wrong length and a valid length checksum."""
    length = len(frame) - 16
    lengths = (0, 1, length - 1, length + 1, length + 16, 1 << 31, 1 << 63, 2**64 - 16)
    field = struct.pack("<Q", random.choice(lengths))
    return field + masked_crc(field) + frame[12:]


def mutate_shard(frames, random):
    """Mutates a file of framed records; returns its bytes and a description."""
    frames, draw = list(frames), random.random()
    position = random.randrange(len(frames))
    if draw < 0.6:
        return mutate_bytes(b"".join(frames), random)
    if draw < 0.8:  # in the length, or one of the checksums
        frame = bytearray(frames[position])
        frame[random.choice((*range(12), -4, -3, -2, -1))] ^= 1 << random.randrange(8)
        description = "frame flipped"
    else:
        frame, description = _set_wrong_length(frames[position], random), "other length"
    frames[position] = bytes(frame)
    return b"".join(frames), description


def split_frames(content):
    """Returns the framed records of a file, with None for a truncated one."""
    frames, start = [], 0
    while start < len(content):
        header = content[start : start + 8].ljust(8, b"\xff")
        end = start + 16 + struct.unpack("<Q", header)[0]
        frame = content[start:end] if end <= len(content) else None
        frames.append(frame)
        start = end
    return frames


# ---- Mutations of numbers in image headers.

_SIZES = (
    *((0, 5), (5, 0), (0, 0), (17, 24), (16, 23), (17, 22), (1, 1), (65535, 23)),
    *((6000, 6000), (20000, 20000), (65000, 65000), (1 << 28, 1)),
    *((1 << 30, 1 << 30), ((1 << 31) - 1, 1), (1 << 31, 5), (2**32 - 1, 2**32 - 1)),
)


def _with_header(png, header):
    chunk = b"IHDR" + header
    return png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def change_size(content, random):
    """Changes the size in the header of a PNG or JPEG, with a valid checksum."""
    height, width = random.choice(_SIZES)
    if content[:4] == b"\x89PNG":
        return _with_header(content, struct.pack(">II", width, height) + content[24:29])
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    sides = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return content[: frame + 5] + sides + content[frame + 9 :]


def change_kind(content, random):
    """Changes the depth, colour type or filter in the header of a PNG or JPEG."""
    if content[:4] == b"\x89PNG":
        header = bytearray(content[16:29])
        values = (0, 1, 2, 3, 4, 6, 8, 16, 255)
        header[random.randrange(8, 13)] = random.choice(values)
        return _with_header(content, bytes(header))
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    changed = bytearray(content)
    # Frame type, depth, number of components, or fields of one component.
    position = frame + random.choice((1, 4, 9, 10, 11, 12))
    changed[position] = random.choice(
        (0, 1, 2, 3, 4, 8, 12, 0x11, 0xC1, 0xC2, 0xC3, 255)
    )
    return bytes(changed)


IMAGE_MUTATIONS = (*BYTE_MUTATIONS, change_size, change_kind)


# ---- Valid records and mutations of records.


class ValidRecord(NamedTuple):
    """A valid record, and the pixels and ids that readers must return."""

    name: str
    image: bytes
    label: bytes
    pixels: np.ndarray
    ids: np.ndarray

    def record(self):
        height, width = self.ids.shape
        kind = "png" if self.image[:4] == b"\x89PNG" else "jpeg"
        encoded = EncodedImage(self.image, kind, height, width)
        return records.serialize(encoded, self.label, self.name)

    def features(self):
        example = tf.train.Example.FromString(self.record())
        return example, example.features.feature


class Mutant(NamedTuple):
    """A mutated record.

    Attributes:
        record: Bytes of the record.
        description: Mutation that was applied.
        expected: Expected image and label, if the record is read.
        is_refused: True or False if required, None if either is allowed.
    """

    record: bytes
    description: str
    expected: tuple[np.ndarray, np.ndarray] | None = None
    is_refused: bool | None = None


def encode_mode(pixels, mode=None, file_format="PNG", **options):
    """Encodes an image, converted to a mode of Pillow if given."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, file_format, **options)
    return file.getvalue()


def upright_exif():
    """Returns EXIF data of an upright image."""
    data = Image.Exif()
    data[0x0112], data[0x010F], data[0x8769] = 1, "maker", {0x9000: b"0230"}
    return data.tobytes()


def _encode_color_images(noise):
    """Yields encoded images of every kind, and their pixels as RGB."""
    smooth = Image.fromarray(noise[::8, ::8]).resize(noise.shape[1::-1])
    for options in (
        {"exif": upright_exif()},
        {"progressive": True},
        {"subsampling": 0},
    ):
        jpeg = encode_mode(
            np.asarray(smooth), file_format="JPEG", quality=70, **options
        )
        yield jpeg, tf.io.decode_jpeg(jpeg).numpy()
    jpeg = encode_mode(np.asarray(smooth), "L", "JPEG")
    yield jpeg, tf.io.decode_jpeg(jpeg, channels=3).numpy()
    yield encode_mode(noise), noise
    grey = noise[..., 0]
    yield encode_mode(grey), np.repeat(grey[..., None], 3, 2)
    png = encode_mode(noise, "P")
    yield png, np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    alpha = np.dstack([noise, np.full_like(grey, 255)])
    yield encode_mode(alpha), noise
    deep = noise.astype(np.uint16) * 257
    yield tf.io.encode_png(deep).numpy(), noise


def _encode_images(kind, noise):
    info = INFOS[kind]
    if kind == "colour":
        yield from _encode_color_images(noise)
        return
    pixels = np.resize(noise, (*noise.shape[:2], info.channels))
    if info.max_value > 255:
        pixels = pixels * np.uint16(257) % np.uint32(info.max_value + 1)
    pixels = pixels.astype(np.uint8 if info.max_value < 256 else np.uint16)
    yield decoding.encode_image(pixels), pixels
    if kind == "grey":
        jpeg = encode_mode(pixels[..., 0], file_format="JPEG")
        yield jpeg, tf.io.decode_jpeg(jpeg, channels=1).numpy()


def valid_records(kind):
    """Returns valid records of a kind, several of each size."""
    random = np.random.RandomState(5)
    valid = []
    for height, width in SIZES:
        noise = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
        for image, pixels in _encode_images(kind, noise):
            ids = random.choice((0, 1, 2, 255), (height, width)).astype(np.uint8)
            name = f"{kind}_{len(valid)}"
            valid.append(ValidRecord(name, image, encode_image(ids), pixels, ids))
    return valid


def _serialize(example):
    return example.SerializeToString(deterministic=True)


def _expect(source, is_refused):
    """Returns `expected` and `is_refused` of a mutant that must be read or refused."""
    return None if is_refused else (source.pixels, source.ids), is_refused


def mutate_record_bytes(source, other, random):
    record, description = mutate_bytes(source.record(), random)
    return Mutant(record, f"record {description}")


def mutate_image_or_label(source, other, random):
    change = random.choice(IMAGE_MUTATIONS)
    if random.random() < 0.6:
        source = source._replace(image=change(source.image, random))
        return Mutant(source.record(), f"image {change.__name__}")
    source = source._replace(label=change(source.label, random))
    return Mutant(source.record(), f"label {change.__name__}")


def append_tail(source, other, random):
    tail = random.randbytes(50)
    changed = source._replace(image=source.image + tail, label=source.label + tail)
    return Mutant(changed.record(), "tail", (source.pixels, source.ids))


def swap_image_and_label(source, other, random):
    record = source._replace(image=source.label, label=source.image).record()
    return Mutant(record, "exchanged fields", None, True)


def replace_image(source, other, random):
    changed = source._replace(image=other.image, pixels=other.pixels)
    is_refused = changed.pixels.shape[:2] != changed.ids.shape
    return Mutant(changed.record(), "image of another", *_expect(changed, is_refused))


def remove_field(source, other, random):
    example, features = source.features()
    key = random.choice(sorted(features))
    del features[key]
    is_refused = key in (KEYS.image, KEYS.label)
    return Mutant(_serialize(example), f"without {key}", *_expect(source, is_refused))


def clear_field(source, other, random):
    example, features = source.features()
    key = random.choice(KEYS)
    features[key].bytes_list.value[0] = b""
    return Mutant(
        _serialize(example), f"empty {key}", *_expect(source, key != KEYS.name)
    )


def set_number(source, other, random):
    example, features = source.features()
    key = random.choice(sorted(features))
    del features[key].bytes_list.value[:]
    features[key].int64_list.value.append(random.getrandbits(60))
    is_refused = key in KEYS
    return Mutant(
        _serialize(example), f"numbers in {key}", *_expect(source, is_refused)
    )


def add_second_value(source, other, random):
    example, features = source.features()
    key = random.choice(KEYS)
    features[key].bytes_list.value.append(random.choice((b"", source.label)))
    return Mutant(_serialize(example), f"two in {key}", None, True)


def remove_values(source, other, random):
    example, features = source.features()
    key = random.choice(KEYS)
    del features[key].bytes_list.value[:]
    if random.random() < 0.5:
        features[key].Clear()
    # A name may be missing, but TensorFlow refuses an empty list.
    is_refused = True if key != KEYS.name else None
    return Mutant(_serialize(example), f"none in {key}", None, is_refused)


def add_fields(source, other, random):
    example, features = source.features()
    for i in range(random.choice((1, 100))):
        features[f"more/{i}"].float_list.value.extend([float("nan"), 1e30])
    return Mutant(_serialize(example), "more fields", *_expect(source, False))


def change_label_mode(source, other, random):
    mode = random.choice(("P", "RGB", "LA", "1", "I;16"))
    label = encode_mode(source.ids, mode)
    return Mutant(source._replace(label=label).record(), f"label {mode}", None, True)


_UNUSUAL_NAMES = (
    *(b"", b"\xff\xfe\x80", b"a\nb\n\t [[{{node x}}]]", b"{{node x}} a", b"] [x] ["),
    *(b"\0", b"record 7 of /tmp/x", b"%s %d {0}", b"x" * 100_000, b"\xed\xa0\x80"),
)


def set_label_out_of_range(source, other, random):
    """Sets an invalid class; errors must report the name of any form."""
    ids = source.ids.copy()
    ids[random.randrange(17), random.randrange(17)] = random.randrange(3, 255)
    example, features = source._replace(label=encode_image(ids)).features()
    name = random.choice(_UNUSUAL_NAMES)
    features[KEYS.name].bytes_list.value[0] = name
    return Mutant(_serialize(example), f"value, name {name[:20]!r}", None, True)


def change_name(source, other, random):
    example, features = source.features()
    name = random.choice(_UNUSUAL_NAMES)
    features[KEYS.name].bytes_list.value[0] = name
    return Mutant(_serialize(example), f"name {name[:20]!r}", *_expect(source, False))


def leave_unchanged(source, other, random):
    return Mutant(source.record(), "untouched", *_expect(source, False))


RECORD_MUTATIONS: tuple[Callable[..., Mutant], ...] = (
    *(
        mutate_record_bytes,
        mutate_record_bytes,
        mutate_image_or_label,
        mutate_image_or_label,
        mutate_image_or_label,
        mutate_image_or_label,
        append_tail,
    ),
    *(swap_image_and_label, replace_image, remove_field, clear_field),
    *(set_number, add_second_value, remove_values, add_fields),
    *(change_label_mode, set_label_out_of_range, change_name, leave_unchanged),
)


def make_mutant(valid, random):
    """Returns a mutant of a random valid record."""
    source, other = random.choice(valid), random.choice(valid)
    return random.choice(RECORD_MUTATIONS)(source, other, random)
