"""The download cache: location, permissions and SHA-256 records."""

import os
import re

import pytest

from deeplab_tf.checkpoints import cache
from deeplab_tf.checkpoints.cache import cache_folder, make_private_folder, verify_file
from deeplab_tf.errors import UserError

# sha256sum of "some".
SHA256 = "a6b46dd0d1ae5e86cbc8f37e75ceeb6760230c1ca4ffbcb0c97b96dd7d9c464b"


def test_cache_folder_from_environment_or_argument(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("DEEPLAB_TF_CACHE", raising=False)
    assert cache_folder() == "/home/someone/.cache/deeplab_tf"
    monkeypatch.setenv("DEEPLAB_TF_CACHE", "~/weights")
    assert cache_folder() == "/home/someone/weights"
    assert cache_folder("/data") == "/data"
    with pytest.raises(UserError, match=r"on a local disk; received gs://"):
        cache_folder("gs://bucket")


def test_new_cache_is_private(tmp_path):
    folder = str(tmp_path / "a/cache")
    before = os.umask(0)
    try:
        assert make_private_folder(folder) == folder
    finally:
        os.umask(before)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o755)
    assert make_private_folder(folder) == folder  # other users may read


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o770])
def test_cache_writable_by_others_is_refused(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(cache, "_is_own_group", lambda status: False)
    folder = tmp_path / "my cache"
    folder.mkdir()
    folder.chmod(mode)
    message = (
        f"other users can write to the cache {folder}; run chmod go-w '{folder}' or "
        "give a different folder as cache_dir or DEEPLAB_TF_CACHE"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_private_folder(str(folder))
    folder.chmod(mode & ~0o022)
    make_private_folder(str(folder))


def test_group_of_a_single_user_is_accepted(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o770)
    user = cache.pwd.getpwuid(os.geteuid())
    group = cache.grp.getgrgid(folder.stat().st_gid)
    for members, name, is_own in (
        ([], user.pw_name, True),
        ([user.pw_name], user.pw_name, True),
        (["eve"], user.pw_name, False),
        ([], "staff", False),
    ):
        changed = cache.grp.struct_group((name, "x", group.gr_gid, members))
        monkeypatch.setattr(cache.grp, "getgrgid", lambda _, found=changed: found)
        if is_own:
            make_private_folder(str(folder))
        else:
            with pytest.raises(UserError, match="other users can write"):
                make_private_folder(str(folder))


def test_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    name = cache.pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:  # anyone may use the caches of root
        os.chown(folder, 54321, -1)
        name = "the user 54321"
    monkeypatch.setattr(os, "geteuid", lambda: 98765)
    message = f"the cache {folder} belongs to {name}, who could replace .*cache_dir or"
    with pytest.raises(UserError, match=message):
        make_private_folder(str(folder))


def verify(path, sha256="", find_damage=None):
    verify_file(str(path), str(path), sha256, find_damage, "fetch it again")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.tar"
    path.write_bytes(b"some")
    return path


@pytest.mark.parametrize(
    "record",
    [b"", b"\xff" * 64, b"0" * 63, b"x" * 64, b"0" * 64 + b"\nmore", b"0" * 10_000_000],
    ids=["empty", "not UTF-8", "short", "no digits", "two lines", "large"],
)
def test_invalid_checksum_file_is_refused(path, record):
    stored = path.with_name("some.tar.sha256")
    stored.write_bytes(record)
    message = f"^{stored} contains no SHA-256; remove it and {path} to download again"
    with pytest.raises(UserError, match=message):
        verify(path)
    assert stored.read_bytes() == record
    verify(path, SHA256)  # a published digest needs no record


@pytest.mark.parametrize(
    "record", [SHA256, SHA256.upper(), f"{SHA256}  some.tar\n", f"{SHA256} *x\n"]
)
def test_sha256sum_records_are_accepted(path, record):
    stored = path.with_name("some.tar.sha256")
    stored.write_text(record)
    verify(path)
    path.write_bytes(b"same")
    with pytest.raises(
        UserError, match=rf"{SHA256} was recorded on its first use \({stored}\); f"
    ):
        verify(path)


def test_checksum_file_is_written_atomically(path, monkeypatch):
    (path.parent / "some.tar.sha256.new").write_text("of a process that was killed")
    verify(path)
    stored = path.with_name("some.tar.sha256")
    assert stored.read_text() == f"{SHA256}  some.tar\n"
    stored.unlink()
    monkeypatch.setattr(os, "replace", lambda *paths: os.stat("/nowhere"))
    verify(path)  # as in a read-only cache
    assert not stored.exists()


def test_published_digest_may_be_upper_case(path):
    verify(path, SHA256.upper())
    assert os.listdir(path.parent) == ["some.tar"]


def test_start_of_a_digest_may_be_published(path):
    verify(path, SHA256[:8])
    record = path.with_name("some.tar.sha256").read_text()
    assert record == f"{SHA256}  some.tar\n"
    verify(path, SHA256[:8].upper())
    with pytest.raises(UserError, match=f"has the SHA-256 {SHA256}, but 01234567 was"):
        verify(path, "01234567")
    path.with_name("some.tar.sha256").write_text("0" * 64)
    with pytest.raises(UserError, match=f"but {'0' * 64} was recorded on its first"):
        verify(path, SHA256[:8])
