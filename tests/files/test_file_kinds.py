"""Kinds of paths, opening files safely, and flags that name special files."""

import os

import pytest
import tensorflow as tf
from program_runs import assert_refused
from special_files import SPECIAL_FILES, fail_if_blocked

from deeplab_tf.errors import UserError, escape, one_line
from deeplab_tf.files import file_kinds
from deeplab_tf.files.file_kinds import Kind, find_kind

NOT_UTF8 = "caf\udce9.png"


def test_kind_is_found_without_opening_the_file(tmp_path, special_file, monkeypatch):
    kind, make = special_file
    make(tmp_path / "x.png")
    monkeypatch.setattr(os, "open", None)
    assert find_kind(tmp_path / "x.png").value == kind
    with pytest.raises(UserError, match=f"^{tmp_path}/x.png is a {kind}; a file is n"):
        file_kinds.require_file(tmp_path / "x.png")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_links_and_file_urls_are_followed(tmp_path, prefix):
    (tmp_path / "-rf.png").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("-rf.png")
    for name in ("-rf.png", "link"):
        assert find_kind(f"{prefix}{tmp_path}/{name}") is Kind.FILE
        assert file_kinds.read_bytes(f"{prefix}{tmp_path}/{name}") == b"abc"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("none.png", Kind.MISSING, "does not exist"),
        ("x" * 300, Kind.TOO_LONG, "does not exist: the name is too long"),
        ("a\0b", Kind.MISSING, r"a\\x00b does not exist"),
        (NOT_UTF8, Kind.NOT_UTF8, r"caf\\udce9.png has a name that is not UTF-8; ren"),
        ("file/x.png", Kind.MISSING, "does not exist"),
    ],
)
def test_unreadable_names_are_refused(tmp_path, name, kind, message):
    (tmp_path / "file").touch()
    path = os.path.join(tmp_path, name)
    assert find_kind(path) is kind
    with pytest.raises(UserError, match=message):
        file_kinds.read_bytes(path)


def test_file_without_permission_is_reported(tmp_path, monkeypatch):
    (tmp_path / "x.png").touch()
    # Root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    with pytest.raises(UserError, match=r"x.png cannot be read: permission denied$"):
        file_kinds.read_bytes(tmp_path / "x.png")


def test_kind_of_a_remote_path_is_found():
    tf.io.gfile.makedirs("ram://kinds/dir.png")
    with tf.io.gfile.GFile("ram://kinds/a.png", "wb") as file:
        file.write(b"abc")
    assert find_kind("ram://kinds/a.png") is Kind.FILE
    assert find_kind("ram://kinds/dir.png") is Kind.DIRECTORY
    assert find_kind("ram://kinds/none.png") is Kind.MISSING
    assert file_kinds.read_bytes("ram://kinds/a.png") == b"abc"
    for name, message in (("dir", "is a directory"), ("none", "does not exist")):
        with pytest.raises(UserError, match=f"^ram://kinds/{name}.png {message}"):
            file_kinds.read_bytes(f"ram://kinds/{name}.png")
    with pytest.raises(UserError, match=r"^foo://x cannot be read: .*foo"):
        file_kinds.read_bytes("foo://x")


def test_file_that_becomes_a_fifo_does_not_block(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    os.mkfifo(path)
    monkeypatch.setattr(file_kinds, "require_file", lambda path: None)
    with fail_if_blocked(), pytest.raises(UserError, match=r"no longer a file$"):
        file_kinds.read_bytes(path)


def test_oversized_file_is_refused(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        UserError, match=r"has 1,099,511,627,776 bytes; the limit is 2,147,"
    ):
        file_kinds.read_bytes(path)
    assert file_kinds.read_bytes("/proc/version") == b""


def test_unprintable_characters_are_escaped():
    assert escape("a\n\x1b[31m\udce9ö  b") == r"a\n\x1b[31m\udce9ö  b"
    assert one_line(" a\n\t b\x07 ") == r"a b\x07"


PROGRAMS = {
    "deeplab_tf.programs.predict": ("model", "images", "video", "output_dir"),
    "deeplab_tf.programs.doctor": ("dataset_dir", "output_dir"),
    "deeplab_tf.programs.train": ("dataset_dir", "tf_initial_checkpoint"),
    "deeplab_tf.programs.eval": ("checkpoint_dir",),
    "deeplab_tf.programs.export": ("checkpoint_path", "export_path"),
    "deeplab_tf.programs.convert.folder": ("image_dir", "classes"),
    "deeplab_tf.programs.convert.voc2012": ("voc_archive", "voc_root"),
}
REQUIRED = {
    "deeplab_tf.programs.predict": ("model", "images", "output_dir"),
    "deeplab_tf.programs.doctor": ("dataset_dir",),
    "deeplab_tf.programs.train": ("train_logdir", "dataset_dir"),
    "deeplab_tf.programs.export": ("checkpoint_path", "export_path"),
    "deeplab_tf.programs.convert.folder": (
        "image_dir",
        "label_dir",
        "classes",
        "output_dir",
    ),
    "deeplab_tf.programs.convert.voc2012": ("output_dir",),
}


@pytest.mark.parametrize(
    ("program", "flag"), [(p, flag) for p, flags in PROGRAMS.items() for flag in flags]
)
def test_flags_that_name_special_files_are_refused(tmp_path, program, flag):
    replaced = (flag, "images") if flag == "video" else (flag,)
    names = [name for name in REQUIRED.get(program, ()) if name not in replaced]
    required = [f"--{name}=x" for name in names]
    for kind in ("FIFO", "socket", "device", "symbolic link loop"):
        path = tmp_path / f"{flag} {kind}"
        SPECIAL_FILES[kind](path)
        message = f"^{program.rpartition('.')[2]}.py: --{flag}={path} is a {kind}$"
        assert_refused(message, program, *required, f"--{flag}={path}")
    message = r"caf\\udce9.png has a name that is not UTF-8"
    assert_refused(message, program, *required, f"--{flag}={tmp_path}/{NOT_UTF8}")


SYSTEM_FILES = (
    *("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"),
    *("__MACOSX/a.jpg", ".git/b.jpg", "sub/__MACOSX/._a.jpg", "sub/THUMBS.DB"),
)


@pytest.mark.parametrize("remote", [False, True])
def test_tree_omits_files_of_the_operating_system(tmp_path, remote):
    root = f"ram://tree{tmp_path}" if remote else str(tmp_path)
    names = ["b.JPG", "sub/a b.c.png", "sub/deep/ü.png"]
    for name in (*names, *SYSTEM_FILES):
        tf.io.gfile.makedirs(os.path.dirname(f"{root}/{name}"))
        with tf.io.gfile.GFile(f"{root}/{name}", "w") as file:
            file.write("x")
    assert file_kinds.list_tree(root) == names
    assert file_kinds.list_names(root) == ["b.JPG", "sub"]


def test_tree_follows_links_but_no_loops(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/x.png").touch()
    (tmp_path / "a/b/up").symlink_to("..")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a/empty.png").mkdir()
    (tmp_path / "a/empty").mkdir()
    expected = ["a/empty.png", "a/x.png", "link/empty.png", "link/x.png"]
    assert file_kinds.list_tree(tmp_path) == expected
    assert file_kinds.list_tree(tmp_path, [f"{tmp_path.resolve()}/a"]) == []


def test_programs_expand_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = [f"--{name}=~/{name}" for name in ("image_dir", "label_dir", "output_dir")]
    (tmp_path / "classes.txt").write_text("a")
    message = f"--image_dir={tmp_path}/image_dir is not a folder"
    program = "deeplab_tf.programs.convert.folder"
    (tmp_path / "label_dir").mkdir()
    assert_refused(message, program, *flags, "--classes=~/classes.txt")
