"""The reader of tar archives: as tarfile reads them, and hostile ones in one line."""

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
    """Returns the files of an archive, and its folders."""
    files, folders = {}, set()
    for found in read_members(io.BytesIO(content)):
        if found.is_folder:
            folders.add(found.name)
        else:
            files[found.name] = b"".join(found.blocks())
            assert len(files[found.name]) == found.size
    return files, folders


def read_by_tarfile(content):
    files, folders = {}, set()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for found in tar:
            if found.isdir():
                folders.add(found.name)
            else:
                files[found.name] = tar.extractfile(found).read()
    return files, folders - {"."}


def archive(files, form=tarfile.GNU_FORMAT, folders=(), **fields):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
        for name in folders:  # after what is in them
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ordinary_archives_are_read_as_by_tarfile(form, compression):
    content = archive(FILES, form, folders=("top", "top/a", "alone"))
    content = COMPRESSIONS[compression](content)
    assert read(content) == read_by_tarfile(content)
    assert read(content)[0] == FILES


ODD = {
    "ustar with a prefix": archive(
        {f"{99 * 'a'}/{99 * 'b'}": b"x"}, tarfile.USTAR_FORMAT
    ),
    "old, without a magic": member("a/b", b"x", b"\0", magic=bytes(8))
    + member("a/", b"", b"\0", magic=bytes(8))
    + END,
    "a size in base 256": header("a", raw_size=hostile_tars.base256(3))
    + b"abc".ljust(512, b"\0")
    + END,
    "a size without leading zeros": header("a", raw_size=b"          3 ")
    + b"abc".ljust(512, b"\0")
    + END,
    "the topmost folder": member("./", kind=b"5") + member("./a/b", b"x") + END,
    "a folder twice": 2 * member("a/", kind=b"5") + member("a/b", b"x") + END,
    "a contiguous file": member("a", b"x", b"7") + END,
    "a comment for all files": pax("comment=of git", kind=b"g") + member("a") + END,
    "an infinite time": pax("mtime=1e999", "atime=nan") + member("a", b"x") + END,
    "a size in pax": pax("size=3") + header("a") + b"abc".ljust(512, b"\0") + END,
    "a long and a pax name": long_name("b/c") + pax("mtime=1") + member("a") + END,
    "one block at its end": member("a", b"x") + bytes(512),
    "records of 10 KiB": member("a", b"x") + bytes(9216),
    "no files": END,
    "pieces of gzip": gzip.compress(member("a", b"x")) + gzip.compress(END),
    "pieces of xz": lzma.compress(member("a", b"x")) + lzma.compress(END),
    "zeros after gzip": gzip.compress(member("a", b"x") + END) + bytes(1000),
    "a name that looks like bzip2": member("BZh91AY", b"x") + END,
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_archives_are_read_as_by_tarfile(kind):
    files, folders = read_by_tarfile(ODD[kind])
    names = {name.removeprefix("./"): content for name, content in files.items()}
    assert read(ODD[kind]) == (names, folders)


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
    made = subprocess.run(command, check=True, capture_output=True).stdout
    assert read(made)[0] == files
    assert read(made)[1] >= {"top", "top/a"}


@pytest.mark.parametrize("kind", hostile_tars.HOSTILE)
def test_hostile_archives_are_refused_in_one_line(kind):
    make, message = hostile_tars.HOSTILE[kind]
    with pytest.raises(ArchiveError, match=message) as error:
        read(make())
    assert str(error.value).isprintable() and len(str(error.value)) < 250


def test_data_may_be_read_in_part_or_not_at_all():
    content = archive({"a": b"x" * 3_000_000, "b": b"see", "c": b"last"})
    for packed in (content, gzip.compress(content, 1)):
        members = read_members(io.BytesIO(packed))
        assert len(next(next(members).blocks())) == 1 << 20
        next(members)
        assert b"".join(next(members).blocks()) == b"last"
        assert list(members) == []


def test_files_on_disk_are_skipped_by_position(tmp_path):
    """A member of 1 TiB takes no time, and is not believed before its end is there."""
    path = tmp_path / "sparse.tar"
    size = 1 << 40
    with path.open("wb") as file:
        file.write(header("a", raw_size=hostile_tars.base256(size)))
        file.truncate(512 + size)
        file.seek(512 + size)
        file.write(member("b", b"see") + END)
    with path.open("rb") as file:
        found = [(each.name, each.size) for each in read_members(file)]
    assert found == [("a", size), ("b", 3)]
    with path.open("r+b") as file:
        file.truncate(size)
    with path.open("rb") as file, pytest.raises(ArchiveError, match="cut off"):
        list(read_members(file))


def test_the_reader_needs_the_standard_library_alone():
    for name in ("tar", "compression"):
        text = pathlib.Path(f"deeplab_tf/files/{name}.py").read_text()
        assert "tensorflow" not in text and "etils" not in text
