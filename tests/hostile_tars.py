"""Builds tar archives header by header, most of them hostile."""

import bz2
import gzip
import io
import lzma
import random
import zlib

BLOCK = 512
END = bytes(2 * BLOCK)
GNU, USTAR = b"ustar  \0", b"ustar\x0000"


def header(name, size=0, kind=b"0", *, raw_size=None, magic=GNU, prefix=b""):
    """Returns a header block.

    Args:
        name: Path, text or bytes.
        size: Number in the size field.
        kind: Type of the member.
        raw_size: The 12 bytes of the size field instead of a number.
        magic: Magic and version.
        prefix: The prefix field of ustar.
    """
    name = name.encode() if isinstance(name, str) else name
    block = bytearray(BLOCK)
    block[:100] = name.ljust(100, b"\0")
    block[100:124] = b"0000644\0" + 2 * b"0000000\0"
    block[124:136] = raw_size or b"%011o\0" % size
    block[136:148] = b"%011o\0" % 1_300_000_000
    block[156:157], block[257:265] = kind, magic
    block[345:500] = prefix.ljust(155, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert len(block) == BLOCK
    return bytes(block)


def member(name, data=b"", kind=b"0", **fields):
    """Returns a header followed by its data, padded."""
    return header(name, len(data), kind, **fields) + data + bytes(-len(data) % BLOCK)


def pax(*records, kind=b"x"):
    """Returns a pax extension header with records `key=value`."""
    return member("pax", b"".join(map(_record, records)), kind)


def _record(text):
    text = text.encode() if isinstance(text, str) else text
    size = len(text) + 3
    while len(b"%d %s\n" % (size, text)) != size:
        size += 1
    return b"%d %s\n" % (size, text)


def long_name(name):
    """Returns a GNU extension header with a long name."""
    return member("././@LongLink", name.encode() + b"\0", b"L")


def base256(number):
    """Returns a size field in GNU's binary format."""
    if number < 0:
        return b"\xff" + (256**11 + number).to_bytes(11, "big")
    return b"\x80" + number.to_bytes(11, "big")


def compress_blocks(*blocks):
    """Compresses blocks of bytes one by one; returns the gzip file."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as file:
        for block in blocks:
            file.write(block)
    return out.getvalue()


def xz_with_large_dictionary():
    """Returns an archive whose xz header asks for a dictionary of 1.5 GiB."""
    content = bytearray(lzma.compress(member("a") + END))
    start, size = 12, 12  # of the first block header, which ends with its CRC
    assert content[start : start + 4] == b"\x02\x00\x21\x01"
    content[start + 4] = 37
    end = start + size
    content[end - 4 : end] = zlib.crc32(content[start : end - 4]).to_bytes(4, "little")
    return bytes(content)


def flip_byte(content, position):
    content = bytearray(content)
    content[position] ^= 255
    return bytes(content)


def noise(size):
    return random.Random(0).randbytes(size)


def zeros(mebibytes):
    return (bytes(1 << 20) for _ in range(mebibytes))


_FILE = member("b", b"abc")
_NOISE = member("a", noise(1 << 16)) + END
_NOT_PLAIN = "not a regular file or folder"
_BROKEN_SIZE = "its member a has a negative or broken size"
_BROKEN_PAX = "a pax header is broken"
_DAMAGED = "its compression is damaged"
_TRUNCATED = "it is cut off"
_DUPLICATE = "occurs twice"
_FILE_AND_FOLDER = "makes a both a file and a folder"
_OUTSIDE = r"leads outside the archive with \.\."

# Function that makes an archive, and pattern of the error message.
HOSTILE = {
    "empty": (lambda: b"", "it is empty"),
    "captive portal page": (lambda: b"<html>login</html>" * 100, "not a tar archive"),
    "less than one header": (lambda: b"x" * 100, "not a tar archive"),
    "no end": (lambda: _FILE, "it has no end"),
    "half a header": (lambda: _FILE + header("a")[:100], "it has no end"),
    "flipped header byte": (
        lambda: _FILE + flip_byte(header("a"), 3) + END,
        "header at byte 1024 is damaged",
    ),
    "flipped checksum": (
        lambda: flip_byte(header("a"), 150) + END,
        "not a tar archive",
    ),
    # Sizes.
    "negative size": (
        lambda: _FILE + header("a", raw_size=base256(-512)) + END,
        _BROKEN_SIZE,
    ),
    "negative size first": (
        lambda: header("a", raw_size=base256(-512)) + END,
        _BROKEN_SIZE,
    ),
    "size with a sign": (
        lambda: header("a", raw_size=b"-0000000001\0") + END,
        _BROKEN_SIZE,
    ),
    "size with underscores": (
        lambda: header("a", raw_size=b"0_1_0\0      ") + END,
        _BROKEN_SIZE,
    ),
    "size with an invalid first byte": (
        lambda: header("a", raw_size=b"\xc0" + bytes(11)) + END,
        _BROKEN_SIZE,
    ),
    "size of 88 bits": (
        lambda: header("a", raw_size=base256(2**88 - 1)) + END,
        "claims 309485009821345068724781055 bytes of data: it is cut off",
    ),
    "size beyond the end": (lambda: header("a", 4096) + END, _TRUNCATED),
    "size one byte beyond the end": (lambda: header("a", 1025) + END, _TRUNCATED),
    "size of 8 GiB in a gzip file": (
        lambda: compress_blocks(header("a", 8**11 - 1) + END),
        "claims 8589934591 bytes of data: more than 100 times the size",
    ),
    "pax size that is not a number": (
        lambda: pax("size=nan") + header("a") + END,
        "a pax header has the size nan",
    ),
    "negative pax size": (
        lambda: pax("size=-1") + header("a") + END,
        "a pax header has the size -1",
    ),
    "fractional pax size": (
        lambda: pax("size=1.5") + header("a") + END,
        "a pax header has the size 1.5",
    ),
    "pax size of 5000 digits": (
        lambda: pax("size=" + 5000 * "9") + header("a") + END,
        r"a pax header has the size 9+\.\.\.9+$",
    ),
    "pax size of an exabyte": (
        lambda: pax("size=" + 18 * "9") + header("a") + END,
        "claims 999999999999999999 bytes of data: it is cut off",
    ),
    "folder with data": (lambda: member("a", b"abc", b"5") + END, "folder with data"),
    # Extension headers.
    "long name of 1.5 GiB": (
        lambda: compress_blocks(header("L", 3 << 29, b"L"), *zeros(8)),
        "extension header claims 1610612736 bytes",
    ),
    "pax header of 1.5 GiB": (
        lambda: compress_blocks(header("x", 3 << 29, b"x"), *zeros(8)),
        "extension header claims 1610612736 bytes",
    ),
    "chain of extension headers": (
        lambda: 5 * pax("comment=x") + header("a") + END,
        "more than 4 extension headers",
    ),
    "endless chain of long names": (
        lambda: compress_blocks(*(long_name("a") for _ in range(1000))),
        "more than 4 extension headers",
    ),
    "extension header without a member": (
        lambda: pax("path=a") + END,
        "ends after an extension header",
    ),
    "pax record that is too long": (
        lambda: member("p", b"99 path=a\n", b"x") + header("a") + END,
        _BROKEN_PAX,
    ),
    "pax record of length zero": (
        lambda: member("p", b"0 path=a\n", b"x") + header("a") + END,
        _BROKEN_PAX,
    ),
    "pax record that is too short": (
        lambda: member("p", b"6 path=abc\n", b"x") + header("a") + END,
        _BROKEN_PAX,
    ),
    "pax record without a key": (
        lambda: member("p", b"9 path a\n", b"x") + header("a") + END,
        _BROKEN_PAX,
    ),
    "many pax records": (
        lambda: pax(*(f"k{i}=" for i in range(65))) + header("a") + END,
        "pax header has more than 64 records",
    ),
    "global path": (
        lambda: pax("path=a", kind=b"g") + header("a") + END,
        "global pax header sets a path",
    ),
    # Kinds.
    "hard link": (lambda: header("a", kind=b"1") + END, f"a hard link, {_NOT_PLAIN}"),
    "symbolic link": (
        lambda: header("a", kind=b"2") + END,
        f"a symbolic link, {_NOT_PLAIN}",
    ),
    "character device": (
        lambda: header("a", kind=b"3") + END,
        f"a character device, {_NOT_PLAIN}",
    ),
    "block device": (
        lambda: header("a", kind=b"4") + END,
        f"a block device, {_NOT_PLAIN}",
    ),
    "FIFO": (lambda: header("a", kind=b"6") + END, f"a FIFO, {_NOT_PLAIN}"),
    "long link": (lambda: member("L", b"b\0", b"K") + END, f"a link, {_NOT_PLAIN}"),
    "unknown type": (lambda: header("a", kind=b"Z") + END, f"unknown .*{_NOT_PLAIN}"),
    "GNU sparse file": (
        lambda: member("a", b"abc", b"S") + END,
        f"a sparse file, {_NOT_PLAIN}",
    ),
    "pax sparse file": (
        lambda: (
            pax("GNU.sparse.major=1", "GNU.sparse.realsize=9999999999999")
            + member("a", b"0\n" + bytes(510))
            + END
        ),
        "a sparse file",
    ),
    # Names.
    "absolute path": (lambda: member("/tmp/evil") + END, "has an absolute path"),
    "absolute Windows path": (
        lambda: member("C:/evil") + END,
        "C:/evil has an absolute path",
    ),
    "Windows drive": (lambda: member("c:evil") + END, "c:evil has an absolute path"),
    "backslash": (lambda: member("..\\evil") + END, "has a backslash in its name"),
    "path outside": (lambda: member("../evil") + END, _OUTSIDE),
    "path with .. inside": (lambda: member("a/../b") + END, _OUTSIDE),
    "pax path outside": (
        lambda: pax("path=../evil") + member("a") + END,
        rf"member \.\./evil {_OUTSIDE}",
    ),
    "prefix outside": (
        lambda: member("evil", magic=USTAR, prefix=b"..") + END,
        rf"member \.\./evil {_OUTSIDE}",
    ),
    "long name outside": (
        lambda: long_name("../evil") + member("a") + END,
        rf"member \.\./evil {_OUTSIDE}",
    ),
    "NUL in a name": (
        lambda: pax(b"path=a\0b") + member("a") + END,
        r"member a\\x00b has control characters",
    ),
    "line break in a name": (
        lambda: member("a\nb") + END,
        r"member a\\nb has control characters",
    ),
    "name in Latin-1": (
        lambda: member("modèle".encode("latin-1")) + END,
        "has a name that is not UTF-8",
    ),
    "no name": (lambda: member("") + END, "has no name"),
    "file called .": (lambda: member(".") + END, "file with the name of a folder"),
    "file called a/": (lambda: member("a/") + END, "file with the name of a folder"),
    "name of 256 bytes": (
        lambda: long_name(256 * "a") + member("a") + END,
        "has a name that is too long",
    ),
    "path of 1 MB": (
        lambda: pax("path=" + 250_000 * "a/b/") + member("a") + END,
        "has a name that is too long",
    ),
    "deeply nested folders": (
        lambda: long_name(65 * "a/") + member("a", kind=b"5") + END,
        "is nested too deeply in folders",
    ),
    "duplicate file": (lambda: 2 * _FILE + END, f"member b {_DUPLICATE}"),
    "duplicate file with another spelling": (
        lambda: member("b/c") + member("./b//c") + END,
        f"member b/c {_DUPLICATE}",
    ),
    "file inside a file": (lambda: member("a") + member("a/b") + END, _FILE_AND_FOLDER),
    "file replaces a folder": (
        lambda: member("a/b") + member("a") + END,
        _FILE_AND_FOLDER,
    ),
    "folder replaces a file": (
        lambda: member("a") + member("a/", kind=b"5") + END,
        _FILE_AND_FOLDER,
    ),
    # Compression.
    "truncated gzip": (lambda: compress_blocks(_NOISE)[:-40], _TRUNCATED),
    "gzip without its trailer": (lambda: compress_blocks(_NOISE)[:-8], _TRUNCATED),
    "gzip with a wrong checksum": (
        lambda: flip_byte(compress_blocks(_NOISE), -5),
        _DAMAGED,
    ),
    "gzip with a flipped byte": (
        lambda: flip_byte(compress_blocks(_NOISE), 600),
        _DAMAGED,
    ),
    "gzip with junk after it": (
        lambda: compress_blocks(_FILE + END) + b"junk",
        _DAMAGED,
    ),
    "truncated bzip2": (lambda: bz2.compress(_NOISE)[:-40], _TRUNCATED),
    "bzip2 with a flipped byte": (
        lambda: flip_byte(bz2.compress(_NOISE), 600),
        _DAMAGED,
    ),
    "truncated xz": (lambda: lzma.compress(_NOISE)[:-40], _TRUNCATED),
    "xz with a flipped byte": (lambda: flip_byte(lzma.compress(_NOISE), 600), _DAMAGED),
    "xz with a dictionary of 1.5 GiB": (
        xz_with_large_dictionary,
        f"{_DAMAGED}: Memory usage limit exceeded",
    ),
    "gzip in gzip": (
        lambda: compress_blocks(compress_blocks(_FILE + END)),
        "not a tar archive",
    ),
    "zeros after the end": (
        lambda: compress_blocks(_FILE, END, *zeros(65)),
        "more than 64 MiB follow its end",
    ),
}
# Archives that take seconds to make or to refuse.
LARGE = {
    "many files": (
        lambda: compress_blocks(*(header(f"a{i}") for i in range(100_001))),
        "more than 100000 files and folders",
    ),
    "many folders": (
        lambda: compress_blocks(
            *(header("/".join(14 * [f"{i}"])) for i in range(1000))
        ),
        "more than 10000 folders",
    ),
    "one folder many times": (
        lambda: compress_blocks(*(1000 * header("./", kind=b"5") for _ in range(151))),
        "more than 150000 headers",
    ),
    "many pax headers": (
        lambda: compress_blocks(
            *(
                pax(*(f"k{j}=" for j in range(63))) + header(f"a{i}")
                for i in range(10_000)
            )
        ),
        "more than 500000 pax records",
    ),
    "many gzip streams": (
        lambda: compress_blocks(_FILE) + 100_001 * compress_blocks(),
        "more than 100000 compressed streams",
    ),
    "bzip2 bomb": (
        lambda: bz2.compress(header("a", 300 << 20) + bytes(1 << 20)),
        "claims 314572800 bytes of data: more than 100 times the size",
    ),
}
