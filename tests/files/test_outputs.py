"""Outputs replace only earlier outputs, and replace them atomically."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import textwrap

import pytest

from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs, scratch


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder and the working folder in it, each with a user's file."""
    current = tmp_path / "home/current"
    current.mkdir(parents=True)
    (tmp_path / "home/thesis.tex").write_text("years of work")
    (current / "notes.txt").write_text("years of work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(current)
    return tmp_path / "home"


def read_files(folder):
    """Returns `{path: bytes}` of all files except ledgers."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != outputs.LEDGER
    }


def publish_folder(path, overwrite=False, **contents):
    with outputs.publish(str(path), overwrite) as unfinished:
        for name, content in (contents or {"graph.pb": "new"}).items():
            file = pathlib.Path(unfinished, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "path", ["", ".", "./", "..", "../..", "{home}", "{home}/", "/", "link", "up/.."]
)
def test_home_root_and_parent_folders_are_never_replaced(path, overwrite, home):
    (home / "current/link").symlink_to(home)
    (home / "current/up").mkdir()
    before = read_files(home)
    with pytest.raises(UserError, match=r"path is empty|replaced entirely"):
        publish_folder(path.format(home=home), overwrite)
    assert read_files(home) == before


def add_file(folder):
    (folder / "thesis.tex").write_text("years of work")


def change_file(folder):
    (folder / "graph.pb").write_text("edited")


def add_link(folder):
    (folder / "data").symlink_to(folder.parent)


def add_subfolder(folder):
    (folder / "photos").mkdir()
    add_file(folder / "photos")


def remove_ledger(folder):
    (folder / outputs.LEDGER).unlink()


def replace_by_link(folder):
    (folder / "graph.pb").rename(folder.parent / "graph.pb")
    (folder / "graph.pb").symlink_to("../graph.pb")


@pytest.mark.parametrize(
    "change",
    [add_file, change_file, add_link, add_subfolder, remove_ledger, replace_by_link],
)
def test_only_an_unchanged_output_is_replaced(change, tmp_path):
    folder = tmp_path / "export"
    publish_folder(folder, **{"graph.pb": "old", "variables/index": "old"})
    publish_folder(folder, **{"graph.pb": "newer"})
    assert set(read_files(folder)) == {"graph.pb"}
    change(folder)
    before = read_files(tmp_path)
    with pytest.raises(UserError, match=r"export contains .*, which was not writ"):
        publish_folder(folder)
    assert read_files(tmp_path) == before
    publish_folder(folder, overwrite=True)
    assert read_files(folder) == {"graph.pb": b"new"}
    assert (tmp_path / "graph.pb").exists() == (change is replace_by_link)


def test_ledger_can_be_checked_with_sha256sum(tmp_path):
    names = ["graph.pb", "variables/index", "a b", "back\\slash", "new\nline"]
    publish_folder(tmp_path / "export", **dict.fromkeys(names, "x"))
    command = ["sha256sum", "--check", "--strict", "--quiet", outputs.LEDGER]
    subprocess.run(command, cwd=tmp_path / "export", check=True)
    publish_folder(tmp_path / "export")


def test_publishing_to_a_link_replaces_its_target(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "current").symlink_to("3")
    for content in ("first", "second"):
        publish_folder(tmp_path / "current", **{"graph.pb": content})
        assert (tmp_path / "current").is_symlink()
        assert (tmp_path / "3/graph.pb").read_text() == content


def make_text(path):
    path.write_text("mine")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_loop(path):
    path.symlink_to(path.name)


FOREIGN_FILES = {
    "text": (make_text, "was not written by deeplab_tf"),
    "folder": (os.mkdir, "is not a regular file"),
    "fifo": (os.mkfifo, "is not a regular file"),
    "socket": (make_socket, "is not a regular file"),
    "loop": (make_loop, "is a symbolic link loop"),
}


@pytest.mark.parametrize("kind", FOREIGN_FILES)
def test_foreign_files_are_not_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # socket paths must be short
    make, message = FOREIGN_FILES[kind]
    make(pathlib.Path("a.json"))
    before = os.lstat("a.json")
    for attempt in (
        lambda: outputs.write_text("new", "a.json"),
        lambda: outputs.claim(".", ["a.json"]),
    ):
        with pytest.raises(UserError, match=message):
            attempt()
    assert os.path.samestat(before, os.lstat("a.json"))
    if kind == "text":
        outputs.claim(".", ["a.json"], overwrite=True)
        outputs.write_text("new", "a.json")
        assert pathlib.Path("a.json").read_text() == "new"


@pytest.mark.parametrize("folder", ["{}", "ram://files"])
def test_earlier_output_is_replaced_unless_edited(folder, tmp_path):
    path = f"{folder.format(tmp_path)}/metrics.json"
    outputs.claim(folder.format(tmp_path), ["metrics.json"])
    for text in ("first", "second"):
        outputs.write_text(text, path)
        assert outputs.is_ours(path)
    with outputs.tf.io.gfile.GFile(path, "w") as file:
        file.write("edited")
    with pytest.raises(UserError, match=r"metrics\.json exists but was not written"):
        outputs.write_text("third", path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_inputs_are_never_replaced(overwrite, tmp_path):
    outputs.write_text("ours", str(tmp_path / "a_label.png"))
    (tmp_path / "b.png").symlink_to("a_label.png")
    for read in ("a_label.png", "b.png"):
        inputs = [str(tmp_path / read)]
        with pytest.raises(UserError, match=r"a_label\.png is an input"):
            outputs.claim(str(tmp_path), ["a_label.png"], overwrite, inputs)


def test_truncated_ledger_entry_does_not_break_the_next(tmp_path):
    path, ledger = tmp_path / "a.json", tmp_path / outputs.LEDGER
    outputs.write_text("first", str(path))
    for content in ("second", "third"):
        # As on a full disk; the next entry must start a new line.
        ledger.write_text(ledger.read_text() + "0123456789abcdef")
        outputs.write_text(content, str(path))
        assert outputs.is_ours(str(path))


def test_ledger_replaced_within_the_same_second_is_read_again(tmp_path):
    for i, content in enumerate(("one", "two")):
        other = tmp_path / content
        other.mkdir()
        outputs.write_text(content, str(other / "a.txt"))
        os.utime(other / outputs.LEDGER, ns=(0, 10**18 + i))
    shutil.copytree(tmp_path / "one", tmp_path / "place")
    assert outputs.is_ours(str(tmp_path / "place/a.txt"))
    shutil.rmtree(tmp_path / "place")
    shutil.copytree(tmp_path / "two", tmp_path / "place")
    assert outputs.is_ours(str(tmp_path / "place/a.txt"))


def test_ledger_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / outputs.LEDGER).symlink_to("../mine")
    with pytest.raises(UserError, match=r"sha256 is not a regular file"):
        outputs.write_text("new", str(tmp_path / "out/a.json"))
    assert (tmp_path / "mine").read_text() == "mine"


def test_folder_is_replaced_without_atomic_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "_try_exchange", lambda one, other: False)
    for content in ("first", "second"):
        publish_folder(tmp_path / "export", **{"graph.pb": content})
    assert read_files(tmp_path) == {"export/graph.pb": b"second"}

    def fail(source, target):
        if target == str(tmp_path / "export"):
            raise KeyboardInterrupt  # as if killed between the two renames
        os.replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", fail)
        patch.setattr("shutil.rmtree", lambda path: None)
        publish_folder(tmp_path / "export")
    assert not (tmp_path / "export").exists()
    scratch.remove_leftovers(str(tmp_path))
    assert read_files(tmp_path) == {"export/graph.pb": b"second"}


# Loads only `scratch`, because `files` imports TensorFlow, which is slow.
CREATE_SCRATCH = textwrap.dedent(
    """
    import sys, os, importlib.util
    spec = importlib.util.spec_from_file_location("scratch", sys.argv[1])
    scratch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scratch)
    with scratch.create_folder(sys.argv[2]) as folder:
        print(folder, flush=True)
        sys.stdin.readline()
    """
)


def start_writer(folder):
    """Starts a process with a scratch folder; returns the process and the folder."""
    command = [sys.executable, "-c", CREATE_SCRATCH, scratch.__file__, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    return process, pathlib.Path(process.stdout.readline().strip())


def test_only_leftovers_of_killed_processes_are_removed(tmp_path):
    (tmp_path / ".deeplab_tf-of-mine").mkdir()
    running, its_folder = start_writer(tmp_path)
    killed, leftover = start_writer(tmp_path)
    with killed:
        killed.kill()
    assert leftover.is_dir()
    publish_folder(tmp_path / "export")
    assert its_folder.is_dir()
    assert not leftover.exists()
    with running:
        running.stdin.write("\n")
    assert sorted(os.listdir(tmp_path)) == [".deeplab_tf-of-mine", "export"]
