"""Sound records, and mutations of them, of their pictures and of files."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image
from plain_records import encoded

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


# ---- Mutations of bytes, of whatever they are. `random` is a random.Random.


def _span(content, random):
    """Returns two places of the content, in order."""
    return sorted(random.randrange(len(content) + 1) for _ in range(2))


def flipped(content, random):
    content = bytearray(content)
    first, last = 0, len(content)
    if random.random() < 0.3:  # the header is small and matters much
        first = random.randrange(last)
        last = min(last, first + 32)
    for _ in range(random.randint(1, 8)):
        content[random.randrange(first, last)] ^= 1 << random.randrange(8)
    return bytes(content)


def cut(content, random):
    return content[: random.randrange(len(content))]


def doubled(content, random):
    first, last = _span(content, random)
    return content[:last] + content[first:]


def shortened(content, random):
    first, last = _span(content, random)
    return content[:first] + content[last:]


def swapped(content, random):
    a, b, c, d = sorted(random.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def appended(content, random):
    return content + random.randbytes(random.choice((1, 7, 16, 400)))


def zeroed(content, random):
    first, last = _span(content, random)
    return content[:first] + bytes(last - first) + content[last:]


BYTES = (flipped, flipped, flipped, cut, doubled, shortened, swapped, appended, zeroed)


def mutated(content, random):
    """Returns bytes that went through one of `BYTES`, and its name."""
    change = random.choice(BYTES)
    return change(content, random), change.__name__


def checksum(content):
    """Returns TFRecord's masked CRC32C."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(record):
    """Returns the bytes of a record in a file."""
    length = struct.pack("<Q", len(record))
    return length + checksum(length) + record + checksum(record)


def _measured(frame, random):
    """Returns a framed record with another length, the checksum of that right."""
    length = len(frame) - 16
    others = (0, 1, length - 1, length + 1, length + 16, 1 << 31, 1 << 63, 2**64 - 16)
    other = struct.pack("<Q", random.choice(others))
    return other + checksum(other) + frame[12:]


def shard(frames, random):
    """Returns the bytes of a mutated file of framed records, and how it was made."""
    frames, chance = list(frames), random.random()
    place = random.randrange(len(frames))
    if chance < 0.6:
        return mutated(b"".join(frames), random)
    if chance < 0.8:  # in the length, or one of the checksums
        frame = bytearray(frames[place])
        frame[random.choice((*range(12), -4, -3, -2, -1))] ^= 1 << random.randrange(8)
        how = "frame flipped"
    else:
        frame, how = _measured(frames[place], random), "other length"
    frames[place] = bytes(frame)
    return b"".join(frames), how


def frames_of(content):
    """Returns the framed records of a file; of one that is cut short, None."""
    frames, start = [], 0
    while start < len(content):
        header = content[start : start + 8].ljust(8, b"\xff")
        end = start + 16 + struct.unpack("<Q", header)[0]
        frame = content[start:end] if end <= len(content) else None
        frames.append(frame)
        start = end
    return frames


# ---- Mutations of the numbers in the headers of pictures.

_SIDES = (
    *((0, 5), (5, 0), (0, 0), (17, 24), (16, 23), (17, 22), (1, 1), (65535, 23)),
    *((6000, 6000), (20000, 20000), (65000, 65000), (1 << 28, 1)),
    *((1 << 30, 1 << 30), ((1 << 31) - 1, 1), (1 << 31, 5), (2**32 - 1, 2**32 - 1)),
)


def _with_header(png, header):
    chunk = b"IHDR" + header
    return png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def other_size(content, random):
    """Returns a PNG or JPEG whose header has another size, its checksum right."""
    height, width = random.choice(_SIDES)
    if content[:4] == b"\x89PNG":
        return _with_header(content, struct.pack(">II", width, height) + content[24:29])
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    sides = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return content[: frame + 5] + sides + content[frame + 9 :]


def other_kind(content, random):
    """Returns a PNG or JPEG that claims another depth, colour or filter."""
    if content[:4] == b"\x89PNG":
        header = bytearray(content[16:29])
        values = (0, 1, 2, 3, 4, 6, 8, 16, 255)
        header[random.randrange(8, 13)] = random.choice(values)
        return _with_header(content, bytes(header))
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    changed = bytearray(content)
    # Kind of frame, depth, number of components, or those of one component.
    place = frame + random.choice((1, 4, 9, 10, 11, 12))
    changed[place] = random.choice((0, 1, 2, 3, 4, 8, 12, 0x11, 0xC1, 0xC2, 0xC3, 255))
    return bytes(changed)


PICTURES = (*BYTES, other_size, other_kind)


# ---- Sound records, and mutations of records.


class Sound(NamedTuple):
    """A sound record: what is in it, and the pixels that are to be read."""

    name: str
    image: bytes
    label: bytes
    pixels: np.ndarray
    ids: np.ndarray

    def record(self):
        height, width = self.ids.shape
        kind = "png" if self.image[:4] == b"\x89PNG" else "jpeg"
        picture = EncodedImage(self.image, kind, height, width)
        return records.serialize(picture, self.label, self.name)

    def features(self):
        example = tf.train.Example.FromString(self.record())
        return example, example.features.feature


class Mutant(NamedTuple):
    """A mutated record.

    Attributes:
        record: Its bytes.
        what: How it was made.
        expected: Image and label, where they are to be read or else refused.
        is_refused: None where it may be refused or read.
    """

    record: bytes
    what: str
    expected: tuple[np.ndarray, np.ndarray] | None = None
    is_refused: bool | None = None


def saved(pixels, mode=None, file_format="PNG", **options):
    """Returns the bytes of a picture, of another mode of Pillow if it is given."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, file_format, **options)
    return file.getvalue()


def exif():
    """Returns EXIF data of an upright image."""
    data = Image.Exif()
    data[0x0112], data[0x010F], data[0x8769] = 1, "maker", {0x9000: b"0230"}
    return data.tobytes()


def _colour_images(noise):
    """Yields pictures of any kind, and the pixels that are read as RGB."""
    smooth = Image.fromarray(noise[::8, ::8]).resize(noise.shape[1::-1])
    for options in ({"exif": exif()}, {"progressive": True}, {"subsampling": 0}):
        jpeg = saved(np.asarray(smooth), file_format="JPEG", quality=70, **options)
        yield jpeg, tf.io.decode_jpeg(jpeg).numpy()
    jpeg = saved(np.asarray(smooth), "L", "JPEG")
    yield jpeg, tf.io.decode_jpeg(jpeg, channels=3).numpy()
    yield saved(noise), noise
    grey = noise[..., 0]
    yield saved(grey), np.repeat(grey[..., None], 3, 2)
    png = saved(noise, "P")
    yield png, np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    alpha = np.dstack([noise, np.full_like(grey, 255)])
    yield saved(alpha), noise
    deep = noise.astype(np.uint16) * 257
    yield tf.io.encode_png(deep).numpy(), noise


def _images(kind, noise):
    info = INFOS[kind]
    if kind == "colour":
        yield from _colour_images(noise)
        return
    pixels = np.resize(noise, (*noise.shape[:2], info.channels))
    if info.max_value > 255:
        pixels = pixels * np.uint16(257) % np.uint32(info.max_value + 1)
    pixels = pixels.astype(np.uint8 if info.max_value < 256 else np.uint16)
    yield decoding.encode_image(pixels), pixels
    if kind == "grey":
        jpeg = saved(pixels[..., 0], file_format="JPEG")
        yield jpeg, tf.io.decode_jpeg(jpeg, channels=1).numpy()


def sound_records(kind):
    """Returns sound records of a kind, several of each size."""
    random = np.random.RandomState(5)
    sounds = []
    for height, width in SIZES:
        noise = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
        for image, pixels in _images(kind, noise):
            ids = random.choice((0, 1, 2, 255), (height, width)).astype(np.uint8)
            name = f"{kind}_{len(sounds)}"
            sounds.append(Sound(name, image, encoded(ids), pixels, ids))
    return sounds


def _bytes(example):
    return example.SerializeToString(deterministic=True)


def _fed(sound, is_refused):
    """Returns the fields of a mutant whose pixels are known, or that is refused."""
    return None if is_refused else (sound.pixels, sound.ids), is_refused


def of_bytes(sound, other, random):
    record, how = mutated(sound.record(), random)
    return Mutant(record, f"record {how}")


def of_picture(sound, other, random):
    change = random.choice(PICTURES)
    if random.random() < 0.6:
        sound = sound._replace(image=change(sound.image, random))
        return Mutant(sound.record(), f"image {change.__name__}")
    sound = sound._replace(label=change(sound.label, random))
    return Mutant(sound.record(), f"label {change.__name__}")


def of_tail(sound, other, random):
    tail = random.randbytes(50)
    longer = sound._replace(image=sound.image + tail, label=sound.label + tail)
    return Mutant(longer.record(), "tail", (sound.pixels, sound.ids))


def exchanged_fields(sound, other, random):
    record = sound._replace(image=sound.label, label=sound.image).record()
    return Mutant(record, "exchanged fields", None, True)


def image_of_another(sound, other, random):
    mixed = sound._replace(image=other.image, pixels=other.pixels)
    is_refused = mixed.pixels.shape[:2] != mixed.ids.shape
    return Mutant(mixed.record(), "image of another", *_fed(mixed, is_refused))


def without_field(sound, other, random):
    example, features = sound.features()
    key = random.choice(sorted(features))
    del features[key]
    is_refused = key in (KEYS.image, KEYS.label)
    return Mutant(_bytes(example), f"without {key}", *_fed(sound, is_refused))


def empty_field(sound, other, random):
    example, features = sound.features()
    key = random.choice(KEYS)
    features[key].bytes_list.value[0] = b""
    return Mutant(_bytes(example), f"empty {key}", *_fed(sound, key != KEYS.name))


def numbers_in_field(sound, other, random):
    example, features = sound.features()
    key = random.choice(sorted(features))
    del features[key].bytes_list.value[:]
    features[key].int64_list.value.append(random.getrandbits(60))
    is_refused = key in KEYS
    return Mutant(_bytes(example), f"numbers in {key}", *_fed(sound, is_refused))


def two_in_field(sound, other, random):
    example, features = sound.features()
    key = random.choice(KEYS)
    features[key].bytes_list.value.append(random.choice((b"", sound.label)))
    return Mutant(_bytes(example), f"two in {key}", None, True)


def none_in_field(sound, other, random):
    example, features = sound.features()
    key = random.choice(KEYS)
    del features[key].bytes_list.value[:]
    if random.random() < 0.5:
        features[key].Clear()
    # A name may be missing, but where there is a list TensorFlow wants one in it.
    is_refused = True if key != KEYS.name else None
    return Mutant(_bytes(example), f"none in {key}", None, is_refused)


def more_fields(sound, other, random):
    example, features = sound.features()
    for i in range(random.choice((1, 100))):
        features[f"more/{i}"].float_list.value.extend([float("nan"), 1e30])
    return Mutant(_bytes(example), "more fields", *_fed(sound, False))


def label_of_another_kind(sound, other, random):
    mode = random.choice(("P", "RGB", "LA", "1", "I;16"))
    label = saved(sound.ids, mode)
    return Mutant(sound._replace(label=label).record(), f"label {mode}", None, True)


_NAMES = (
    *(b"", b"\xff\xfe\x80", b"a\nb\n\t [[{{node x}}]]", b"{{node x}} a", b"] [x] ["),
    *(b"\0", b"record 7 of /tmp/x", b"%s %d {0}", b"x" * 100_000, b"\xed\xa0\x80"),
)


def label_out_of_range(sound, other, random):
    """The name is told, whatever it is."""
    ids = sound.ids.copy()
    ids[random.randrange(17), random.randrange(17)] = random.randrange(3, 255)
    example, features = sound._replace(label=encoded(ids)).features()
    name = random.choice(_NAMES)
    features[KEYS.name].bytes_list.value[0] = name
    return Mutant(_bytes(example), f"value, name {name[:20]!r}", None, True)


def other_name(sound, other, random):
    example, features = sound.features()
    name = random.choice(_NAMES)
    features[KEYS.name].bytes_list.value[0] = name
    return Mutant(_bytes(example), f"name {name[:20]!r}", *_fed(sound, False))


def untouched(sound, other, random):
    return Mutant(sound.record(), "untouched", *_fed(sound, False))


RECORDS: tuple[Callable[..., Mutant], ...] = (
    *(of_bytes, of_bytes, of_picture, of_picture, of_picture, of_picture, of_tail),
    *(exchanged_fields, image_of_another, without_field, empty_field),
    *(numbers_in_field, two_in_field, none_in_field, more_fields),
    *(label_of_another_kind, label_out_of_range, other_name, untouched),
)


def mutant(sounds, random):
    """Returns a mutant of one of some sound records."""
    sound, other = random.choice(sounds), random.choice(sounds)
    return random.choice(RECORDS)(sound, other, random)
