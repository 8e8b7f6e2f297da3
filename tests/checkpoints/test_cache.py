"""The cache: whose it is, and what its records say."""

import os
import re

import pytest

from deeplab_tf.checkpoints import cache
from deeplab_tf.checkpoints.cache import cache_folder, make_private, verify
from deeplab_tf.errors import UserError

# sha256sum of "some".
SHA256 = "a6b46dd0d1ae5e86cbc8f37e75ceeb6760230c1ca4ffbcb0c97b96dd7d9c464b"


def test_the_cache_is_where_it_is_said_to_be(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("DEEPLAB_TF_CACHE", raising=False)
    assert cache_folder() == "/home/someone/.cache/deeplab_tf"
    monkeypatch.setenv("DEEPLAB_TF_CACHE", "~/weights")
    assert cache_folder() == "/home/someone/weights"
    assert cache_folder("/data") == "/data"
    with pytest.raises(UserError, match=r"on a disk of this machine; received gs://"):
        cache_folder("gs://bucket")


def test_a_new_cache_is_of_its_user_alone(tmp_path):
    folder = str(tmp_path / "a/cache")
    before = os.umask(0)
    try:
        assert make_private(folder) == folder
    finally:
        os.umask(before)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o755)
    assert make_private(folder) == folder  # others may read


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o770])
def test_a_cache_that_others_can_write_to_is_refused(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(cache, "_is_own_group", lambda status: False)
    folder = tmp_path / "my cache"
    folder.mkdir()
    folder.chmod(mode)
    message = (
        f"other users can write to the cache {folder}; run chmod go-w '{folder}' or "
        "give another folder as cache_dir or DEEPLAB_TF_CACHE"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_private(str(folder))
    folder.chmod(mode & ~0o022)
    make_private(str(folder))


def test_a_group_of_one_user_is_not_another_user(tmp_path, monkeypatch):
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
            make_private(str(folder))
        else:
            with pytest.raises(UserError, match="other users can write"):
                make_private(str(folder))


def test_a_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    name = cache.pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:  # whose caches everybody may use
        os.chown(folder, 54321, -1)
        name = "the user 54321"
    monkeypatch.setattr(os, "geteuid", lambda: 98765)
    message = f"the cache {folder} belongs to {name}, who could replace .*cache_dir or"
    with pytest.raises(UserError, match=message):
        make_private(str(folder))


def check(path, sha256="", find_damage=None):
    verify(str(path), str(path), sha256, find_damage, "fetch it again")


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
def test_a_broken_record_is_refused_in_one_line(path, record):
    stored = path.with_name("some.tar.sha256")
    stored.write_bytes(record)
    message = f"^{stored} contains no SHA-256; remove it and {path} to download again"
    with pytest.raises(UserError, match=message):
        check(path)
    assert stored.read_bytes() == record
    check(path, SHA256)  # a published one needs no record


@pytest.mark.parametrize(
    "record", [SHA256, SHA256.upper(), f"{SHA256}  some.tar\n", f"{SHA256} *x\n"]
)
def test_records_of_sha256sum_are_read(path, record):
    stored = path.with_name("some.tar.sha256")
    stored.write_text(record)
    check(path)
    path.write_bytes(b"same")
    with pytest.raises(UserError, match=rf"of its first use \({stored}\), {SHA256}; f"):
        check(path)


def test_a_record_is_written_atomically(path, monkeypatch):
    (path.parent / "some.tar.sha256.new").write_text("of a process that was killed")
    check(path)
    stored = path.with_name("some.tar.sha256")
    assert stored.read_text() == f"{SHA256}  some.tar\n"
    stored.unlink()
    monkeypatch.setattr(os, "replace", lambda *paths: os.stat("/nowhere"))
    check(path)  # as in a cache that is read-only
    assert not stored.exists()


def test_a_published_sum_may_have_capital_letters(path):
    check(path, SHA256.upper())
    assert os.listdir(path.parent) == ["some.tar"]
