"""The tar reader agrees with tarfile, and refuses hostile archives in one line."""

import bz2
import gzip
import io
import lzma
import pathlib
import shutil
import subprocess
import tarfile

import hostile_tars
import pytest
from hostile_tars import END, header, long_name, member, pax

from deeplab_tf.files.compression import ArchiveError
from deeplab_tf.files.tar import read_members

LONG = "/".join(["a long folder of a path"] * 10 + ["file.txt"])
FILES = {
    "top/a/1.txt": b"one",
    "top/b.bin": hostile_tars.noise(3000),
    "top/empty": b"",
    "top/._b.bin": b"of a Mac",
    "top/Zürich.txt": b"name in UTF-8",
    LONG: b"deep",
}
COMPRESSIONS = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def read(content):
    """Returns `{name: content}` of the files of an archive, and its folders."""
    files, folders = {}, set()
    for entry in read_members(io.BytesIO(content)):
        if entry.is_folder:
            folders.add(entry.name)
        else:
            files[entry.name] = b"".join(entry.blocks())
            assert len(files[entry.name]) == entry.size
    return files, folders


def read_with_tarfile(content):
    files, folders = {}, set()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for entry in tar:
            if entry.isdir():
                folders.add(entry.name)
            else:
                files[entry.name] = tar.extractfile(entry).read()
    return files, folders - {"."}


def make_archive(files, form=tarfile.GNU_FORMAT, folders=(), **fields):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
        for name in folders:  # after their members
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ordinary_archives_are_read_like_tarfile(form, compression):
    content = make_archive(FILES, form, folders=("top", "top/a", "alone"))
    content = COMPRESSIONS[compression](content)
    assert read(content) == read_with_tarfile(content)
    assert read(content)[0] == FILES


UNUSUAL = {
    "ustar with a prefix": make_archive(
        {f"{99 * 'a'}/{99 * 'b'}": b"x"}, tarfile.USTAR_FORMAT
    ),
    "old format without a magic": member("a/b", b"x", b"\0", magic=bytes(8))
    + member("a/", b"", b"\0", magic=bytes(8))
    + END,
    "size in base 256": header("a", raw_size=hostile_tars.base256(3))
    + b"abc".ljust(512, b"\0")
    + END,
    "size without leading zeros": header("a", raw_size=b"          3 ")
    + b"abc".ljust(512, b"\0")
    + END,
    "top-level folder": member("./", kind=b"5") + member("./a/b", b"x") + END,
    "duplicate folder": 2 * member("a/", kind=b"5") + member("a/b", b"x") + END,
    "contiguous file": member("a", b"x", b"7") + END,
    "global comment": pax("comment=of git", kind=b"g") + member("a") + END,
    "infinite time": pax("mtime=1e999", "atime=nan") + member("a", b"x") + END,
    "pax size": pax("size=3") + header("a") + b"abc".ljust(512, b"\0") + END,
    "long name and pax header": long_name("b/c") + pax("mtime=1") + member("a") + END,
    "one end block": member("a", b"x") + bytes(512),
    "records of 10 KiB": member("a", b"x") + bytes(9216),
    "no files": END,
    "concatenated gzip": gzip.compress(member("a", b"x")) + gzip.compress(END),
    "concatenated xz": lzma.compress(member("a", b"x")) + lzma.compress(END),
    "zeros after gzip": gzip.compress(member("a", b"x") + END) + bytes(1000),
    "name that looks like bzip2": member("BZh91AY", b"x") + END,
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_archives_are_read_as_by_tarfile(kind):
    files, folders = read_with_tarfile(UNUSUAL[kind])
    names = {name.removeprefix("./"): content for name, content in files.items()}
    assert read(UNUSUAL[kind]) == (names, folders)


@pytest.mark.parametrize("options", ["--format=gnu", "--format=posix", "--format=v7"])
@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_archives_of_gnu_tar_are_read(tmp_path, options):
    files = {
        name: data for name, data in FILES.items() if name != LONG or "7" not in options
    }
    for name, content in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    command = ["tar", "-C", str(tmp_path / "in"), options, "-cf", "-", "."]
    content = subprocess.run(command, check=True, capture_output=True).stdout
    assert read(content)[0] == files
    assert read(content)[1] >= {"top", "top/a"}


@pytest.mark.parametrize("kind", hostile_tars.HOSTILE)
def test_hostile_archives_give_one_line_errors(kind):
    make, message = hostile_tars.HOSTILE[kind]
    with pytest.raises(ArchiveError, match=message) as error:
        read(make())
    assert str(error.value).isprintable() and len(str(error.value)) < 250


def test_member_data_may_be_skipped():
    content = make_archive({"a": b"x" * 3_000_000, "b": b"see", "c": b"last"})
    for packed in (content, gzip.compress(content, 1)):
        members = read_members(io.BytesIO(packed))
        assert len(next(next(members).blocks())) == 1 << 20
        next(members)
        assert b"".join(next(members).blocks()) == b"last"
        assert list(members) == []


def test_members_on_disk_are_skipped_by_seeking(tmp_path):
    """A member of 1 TiB is skipped at once, and refused if the file is shorter."""
    path = tmp_path / "sparse.tar"
    size = 1 << 40
    with path.open("wb") as file:
        file.write(header("a", raw_size=hostile_tars.base256(size)))
        file.truncate(512 + size)
        file.seek(512 + size)
        file.write(member("b", b"see") + END)
    with path.open("rb") as file:
        members = [(each.name, each.size) for each in read_members(file)]
    assert members == [("a", size), ("b", 3)]
    with path.open("r+b") as file:
        file.truncate(size)
    with path.open("rb") as file, pytest.raises(ArchiveError, match="cut off"):
        list(read_members(file))


def test_reader_needs_only_the_standard_library():
    for name in ("tar", "compression"):
        text = pathlib.Path(f"deeplab_tf/files/{name}.py").read_text()
        assert "tensorflow" not in text and "etils" not in text
