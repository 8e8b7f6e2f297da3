"""Archives are extracted completely or refused with a one-line error."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tarfile

import hostile_tars
import official_archives
import pytest
from etils import epath

from deeplab_tf.errors import UserError
from deeplab_tf.files import archives
from deeplab_tf.files.archives import find_damage

FILES = {"top/a/1.txt": b"one", "top/a/b/2.txt": b"two", "top/c.txt": b"see"}
SELECTED = ("top/a", "top/c.txt")


def extract(archive, folder, selected=SELECTED, **limit):
    return archives.extract(epath.Path(archive), epath.Path(folder), selected, **limit)


def assert_refused(message, archive, folder, **options):
    """Checks that extraction fails with a one-line error that matches."""
    with pytest.raises(UserError, match=message) as error:
        extract(archive, folder, **options)
    assert "\n" not in str(error.value)


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file() and path.name != "archive.txt"
    }


@pytest.fixture
def archive(tmp_path):
    """An archive of FILES."""
    return official_archives.write_tar(tmp_path / "some.tar", FILES)


@pytest.fixture
def folder(tmp_path, archive):
    """The folder into which the archive was extracted."""
    return extract(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["some.tar", "some.tgz"])
def test_only_selected_members_are_extracted(tmp_path, name):
    extra = {"top/other.txt": b"", "top/a2/3.txt": b"", "./top/a/4.txt": b"four"}
    archive = official_archives.write_tar(tmp_path / name, FILES | extra)
    folder = extract(archive, tmp_path / "out")
    assert files_in(folder) == FILES | {"top/a/4.txt": b"four"}
    assert sorted(os.listdir(tmp_path)) == ["out", name]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_stamp_can_be_checked_with_sha256sum(folder):
    command = ["sha256sum", "--check", "--strict", "archive.txt"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr
    assert sorted(checked.stdout.split("\n")[:-1]) == [
        f"{n}: OK" for n in sorted(FILES)
    ]
    (folder / "top/c.txt").write_text("mine")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


def test_intact_folder_is_not_extracted_again(archive, folder):
    inode = os.stat(folder).st_ino
    assert extract(archive, folder) == folder
    assert os.stat(folder).st_ino == inode


def test_scratch_folder_of_a_killed_process_is_removed(tmp_path, archive, folder):
    leftover = tmp_path / f".deeplab_tf-{16 * '0'}.tmp"
    leftover.mkdir()
    (leftover / "old").touch()
    extract(archive, folder)  # intact, so nothing is extracted
    assert not leftover.exists()


def test_changed_archive_is_extracted_again(tmp_path, archive, folder):
    files = FILES | {"top/c.txt": b"other"}
    official_archives.write_tar(archive, {k: files[k] for k in reversed(files)})
    os.utime(archive, ns=(0, 0))
    assert files_in(extract(archive, folder)) == files
    assert_refused(
        "some.tar does not contain top/d; is it the right",
        archive,
        folder,
        selected=["top/d"],
    )
    assert files_in(folder) == files  # unchanged
    assert sorted(os.listdir(tmp_path)) == ["out", "some.tar"]


def change_file(folder):
    (folder / "top/c.txt").write_bytes(b"SEE")


def remove_file(folder):
    (folder / "top/c.txt").unlink()


def add_file(folder):
    (folder / "top/mine.txt").write_bytes(b"mine")


def replace_by_link(folder):
    (folder / "top/c.txt").rename(folder.parent / "c.txt")
    os.symlink(folder.parent / "c.txt", folder / "top/c.txt")


def add_link(folder):
    os.symlink("/", folder / "top/root")


def replace_by_fifo(folder):
    (folder / "top/c.txt").unlink()
    os.mkfifo(folder / "top/c.txt")


def truncate_stamp(folder):
    stamp = folder / "archive.txt"
    stamp.write_bytes(stamp.read_bytes()[:-30])


def corrupt_stamp(folder):
    stamp = folder / "archive.txt"
    stamp.write_bytes(stamp.read_bytes() + b"\xff" * 100_000)


@pytest.mark.parametrize(
    "damage",
    [
        change_file,
        remove_file,
        add_file,
        replace_by_link,
        add_link,
        replace_by_fifo,
        truncate_stamp,
        corrupt_stamp,
    ],
    ids=lambda function: function.__name__,
)
def test_changed_folder_is_kept_and_archive_extracted_again(
    archive, folder, damage, capsys
):
    damage(folder)
    changed = files_in(folder)
    assert files_in(extract(archive, folder)) == FILES
    [backup] = pathlib.Path(folder).parent.glob("out.replaced.*")
    assert files_in(backup) == changed
    assert f"{folder} was changed; it was moved to {backup}" in capsys.readouterr().err


def test_stamp_without_checksums_is_recognized(archive, folder):
    (folder / "archive.txt").write_text("10 bytes of 7: all\n")
    assert files_in(extract(archive, folder)) == FILES


def test_archive_is_extracted_into_an_existing_empty_folder(tmp_path, archive):
    (tmp_path / "out").mkdir()
    assert files_in(extract(archive, tmp_path / "out")) == FILES


@pytest.mark.parametrize("stamp", [None, "my notes\n", "", "# 1 byte\n"])
def test_existing_user_folder_is_refused(tmp_path, archive, stamp):
    mine = tmp_path / "out/top/c.txt"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    if stamp is not None:
        (tmp_path / "out/archive.txt").write_text(stamp)
    assert_refused(f"{tmp_path}/out exists but was not", archive, tmp_path / "out")
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "fifo"])
def test_target_that_is_not_a_folder_is_refused(tmp_path, archive, kind):
    out = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    make = {
        "file": lambda: out.write_bytes(b"mine"),
        "link": lambda: out.symlink_to(tmp_path / "elsewhere"),
        "dangling": lambda: out.symlink_to(tmp_path / "nowhere"),
        "fifo": lambda: os.mkfifo(out),
    }
    make[kind]()
    assert_refused("out exists but is not a folder", archive, out)
    assert os.listdir(tmp_path / "elsewhere") == []
    assert os.path.lexists(out)


def test_folder_published_by_another_process_is_used(tmp_path, archive, monkeypatch):
    """Simulates another process that finishes extracting first."""
    write = archives._extract_members

    def write_twice(*arguments):
        monkeypatch.setattr(archives, "_extract_members", write)
        extract(archive, tmp_path / "out")
        write(*arguments)

    monkeypatch.setattr(archives, "_extract_members", write_twice)
    assert files_in(extract(archive, tmp_path / "out")) == FILES
    assert sorted(os.listdir(tmp_path)) == ["out", "some.tar"]


@pytest.mark.parametrize("selected", [None, ["b"]])
@pytest.mark.parametrize("kind", hostile_tars.HOSTILE)
def test_hostile_archive_is_refused_and_leaves_no_files(tmp_path, kind, selected):
    make, message = hostile_tars.HOSTILE[kind]
    path = tmp_path / "some.tar"
    path.write_bytes(make())
    assert_refused(
        f"some.tar cannot be extracted: .*{message}",
        path,
        tmp_path / "new/out",
        selected=selected,
    )
    assert sorted(os.listdir(tmp_path)) == ["some.tar"]  # nothing was written
    assert re.search(message, find_damage(epath.Path(path)))


def test_chain_of_links_cannot_escape_the_folder(tmp_path):
    """CVE-2025-4517: tarfile's filter stops resolving links above the path limit."""
    deep, steps, path, links = "d" * 247, "abcdefghijklmnop", "", []
    for step in steps:
        links.append(member(os.path.join(path, step), tarfile.SYMTYPE, deep))
        path = os.path.join(path, deep)
    long = f"{'/'.join(steps)}/{'l' * 254}"
    links.append(member(long, tarfile.SYMTYPE, "../" * len(steps)))
    links.append(member("link", tarfile.LNKTYPE, "escape/victim.txt"))
    links.append(member("link"))  # writes through it
    (tmp_path / "victim.txt").write_text("of someone else")
    archive = official_archives.write_tar(tmp_path / "some.tar", {}, *links)
    assert_refused(
        "not a regular file or folder", archive, tmp_path / "out", selected=None
    )
    assert (tmp_path / "victim.txt").read_text() == "of someone else"


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_archive_above_the_limit_is_refused_before_writing(tmp_path):
    # FILES and 1 MiB of zeros, which gzip compresses well.
    archive = official_archives.write_tar(
        tmp_path / "some.tgz", FILES | {"top/a/big.bin": bytes(1 << 20)}
    )
    limit = sum(map(len, FILES.values())) + (1 << 20)
    extract(archive, tmp_path / "out", limit=limit)
    assert find_damage(epath.Path(archive), limit) is None
    message = r"it contains more than 0.000977 GiB; if that is expected, extract"
    assert_refused(message, archive, tmp_path / "other", limit=limit - 1)
    assert re.match(message, find_damage(epath.Path(archive), limit - 1))
    assert sorted(os.listdir(tmp_path)) == ["out", "some.tgz"]


def test_unselected_members_do_not_count_towards_the_limit(tmp_path, archive):
    folder = extract(archive, tmp_path / "out", ("top/c.txt",), limit=3)
    assert files_in(folder) == {"top/c.txt": b"see"}


def test_unwritable_folder_is_reported(tmp_path, archive):
    (tmp_path / "file").write_bytes(b"")
    assert_refused(
        rf"some.tar cannot be extracted into {tmp_path}/file: .*File exists",
        archive,
        tmp_path / "file/out",
    )


@pytest.mark.parametrize("name", ["archive.txt", "archive.txt/a"])
def test_member_named_like_the_stamp_is_refused(tmp_path, name):
    archive = official_archives.write_tar(tmp_path / "some.tar", {name: b"mine"})
    message = "its member archive.txt has the name of the stamp that we"
    assert_refused(message, archive, tmp_path / "out", selected=None)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_archive_that_is_not_a_file_is_refused(tmp_path, kind):
    path = tmp_path / "some.tar"
    {"missing": lambda _: None, "folder": os.mkdir, "fifo": os.mkfifo}[kind](path)
    assert_refused(f"^there is no archive {path}$", path, tmp_path / "out")


def test_intact_archive_has_no_damage(tmp_path):
    for name in ("some.tar", "some.tgz"):
        archive = official_archives.write_tar(tmp_path / name, FILES)
        assert find_damage(epath.Path(archive)) is None


def test_stamp_has_the_checksums_of_the_files(folder):
    lines = (folder / "archive.txt").read_text().split("\n")
    assert re.fullmatch(r"# \d+ bytes of \d+: top/a top/c.txt", lines[0])
    checksums = dict(reversed(line.split("  ")) for line in lines[1:-1])
    assert checksums == {n: hashlib.sha256(c).hexdigest() for n, c in FILES.items()}
