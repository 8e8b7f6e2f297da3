"""Archives over a real connection and off a real disk: whole, or one line of error."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import re
import tarfile

import loopback
import official_archives
import pytest
from etils import epath

from datasets import archives
from deeplab_tf.archives import find_damage
from deeplab_tf.errors import UserError

FILES = {"top/a/1.txt": b"one", "top/a/b/2.txt": b"two", "top/c.txt": b"see"}
WANTED = ("top/a", "top/c.txt")


class Handler(loopback.Quiet, http.server.SimpleHTTPRequestHandler):
    """Serves a folder; ends the connection half way for paths with `?cut`."""

    def do_GET(self):
        self.server.hits.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile):
        content = source.read()
        whole = not self.path.endswith("?cut")
        outputfile.write(content if whole else content[: len(content) // 2])


@pytest.fixture
def server(tmp_path):
    """A server of the files in tmp_path/web; `.url` and `.hits`."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    with loopback.serving(handler) as server:
        server.hits = []
        yield server


@pytest.fixture
def content(tmp_path, server):
    """The bytes of web/some.tar, more than one block of what tfds reads at once."""
    content = os.urandom(300_000)
    (tmp_path / "web/some.tar").write_bytes(content)
    return content


@pytest.fixture
def downloads(tmp_path):
    return epath.Path(tmp_path / "downloads")


def left(folder):
    """Returns what is in a folder besides what tfds would extract to."""
    return sorted({path.name for path in folder.iterdir()} - {"extracted"})


def test_a_right_archive_is_fetched_once(server, content, downloads):
    source = archives.Source(
        f"{server.url}/some.tar", len(content), hashlib.sha256(content).hexdigest()
    )
    path = archives.fetch(source, downloads)
    assert path.read_bytes() == content
    assert archives.fetch(source, downloads) == path
    assert server.hits == ["/some.tar"]


@pytest.mark.parametrize(
    ("size_off", "sha256"), [(0, "0" * 64), (1, None)], ids=["checksum", "size"]
)
def test_another_archive_is_refused_and_removed(
    server, content, downloads, size_off, sha256
):
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    size = len(content) + size_off
    source = archives.Source(f"{server.url}/some.tar", size, sha256)
    message = f"/some.tar is not the archive of {size} bytes with the SHA-256 {sha256}"
    with pytest.raises(UserError, match=message):
        archives.fetch(source, downloads)
    assert left(downloads) == []


def test_the_md5_is_verified_where_no_sha256_is_known(server, content, downloads):
    url = f"{server.url}/some.tar"
    wrong = archives.Source(url, md5="0" * 32)
    for _ in range(2):  # a wrong file that stayed would be taken the second time
        with pytest.raises(UserError, match=r"/some.tar has another MD5 than 000"):
            archives.fetch(wrong, downloads)
        assert left(downloads) == []
    right = archives.Source(url, md5=hashlib.md5(content).hexdigest())
    assert archives.fetch(right, downloads).read_bytes() == content
    assert archives.fetch(right, downloads).read_bytes() == content
    assert len(server.hits) == 3


def test_a_cut_connection_leaves_nothing_and_the_next_run_fetches(
    server, content, downloads
):
    cut = archives.Source(f"{server.url}/some.tar?cut")
    with pytest.raises(
        UserError, match=r"\?cut cannot be fetched: .*150000 bytes read"
    ):
        archives.fetch(cut, downloads)
    assert left(downloads) == []
    whole = archives.Source(f"{server.url}/some.tar")
    assert archives.fetch(whole, downloads).read_bytes() == content


def test_what_the_server_does_not_have_is_named(server, downloads):
    source = archives.Source(f"{server.url}/none.tar")
    with pytest.raises(UserError, match=r"/none.tar cannot be fetched: .*404"):
        archives.fetch(source, downloads)


def test_a_file_url_is_copied(tmp_path, downloads):
    (tmp_path / "here.tar").write_bytes(b"some bytes")
    source = archives.Source(f"file://{tmp_path}/here.tar")
    assert archives.fetch(source, downloads).read_bytes() == b"some bytes"
    missing = archives.Source(f"file://{tmp_path}/none.tar")
    with pytest.raises(UserError, match=r"none.tar cannot be fetched: .*No such file"):
        archives.fetch(missing, downloads)


def extract(archive, folder, wanted=WANTED, **limit):
    return archives.extract(epath.Path(archive), epath.Path(folder), wanted, **limit)


def refused(message, archive, folder, **options):
    """Checks that there is one line that holds a message."""
    with pytest.raises(UserError, match=message) as error:
        extract(archive, folder, **options)
    assert "\n" not in str(error.value)


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file() and path.name != "archive.txt"
    }


@pytest.mark.parametrize("name", ["some.tar", "some.tgz"])
def test_only_what_is_wanted_is_extracted(tmp_path, name):
    more = {"top/other.txt": b"", "top/a2/3.txt": b"", "./top/a/4.txt": b"four"}
    archive = official_archives.write_tar(tmp_path / name, FILES | more)
    folder = extract(archive, tmp_path / "out")
    assert files_in(folder) == FILES | {"top/a/4.txt": b"four"}
    assert sorted(os.listdir(tmp_path)) == ["out", name]


def test_a_complete_folder_is_not_extracted_again_unless_the_archive_changes(tmp_path):
    archive = official_archives.write_tar(tmp_path / "some.tar", FILES)
    folder = extract(archive, tmp_path / "out")
    (folder / "top/c.txt").write_bytes(b"mine")
    assert files_in(extract(archive, folder))["top/c.txt"] == b"mine"
    files = FILES | {"top/c.txt": b"other"}
    official_archives.write_tar(archive, {k: files[k] for k in reversed(files)})
    os.utime(archive, ns=(0, 0))
    assert files_in(extract(archive, folder)) == files
    with pytest.raises(UserError, match=r"some.tar has no top/d; is it the right"):
        extract(archive, folder, (*WANTED, "top/d"))
    assert files_in(folder) == files  # of before


def test_what_an_interrupted_extraction_left_is_not_taken(tmp_path):
    archive = official_archives.write_tar(tmp_path / "some.tar", FILES)
    (tmp_path / "out.unfinished/top/a").mkdir(parents=True)
    (tmp_path / "out.unfinished/top/a/old.txt").write_bytes(b"half")
    (tmp_path / "out/top").mkdir(parents=True)  # without the mark of completeness
    folder = extract(archive, tmp_path / "out")
    assert files_in(folder) == FILES
    assert sorted(os.listdir(tmp_path)) == ["out", "some.tar"]


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


UNSAFE = {
    "outside": (member("../evil"), "member ../evil; refused: .*outside"),
    "outside by a detour": (member("top/a/../../../evil"), "evil; refused: .*outside"),
    "absolute": (member("/tmp/evil"), "absolute path /tmp/evil; refused"),
    "symbolic link": (
        member("top/a/evil", tarfile.SYMTYPE, "1.txt"),
        "member top/a/evil; refused: it is no plain file or folder",
    ),
    "hard link": (
        member("top/a/evil", tarfile.LNKTYPE, "top/a/1.txt"),
        "member top/a/evil; refused: it is no plain file or folder",
    ),
    "device": (member("top/a/evil", tarfile.CHRTYPE), "evil; refused: it is no plain"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_archive_is_refused_whole(tmp_path, kind):
    evil, message = UNSAFE[kind]
    folder = tmp_path / "work"
    archive = official_archives.write_tar(tmp_path / "some.tar", FILES, evil)
    refused(f"some.tar has the .*{message}", archive, folder / "out")
    assert os.listdir(folder) == []
    assert sorted(os.listdir(tmp_path)) == ["some.tar", "work"]
    assert not os.path.exists("/tmp/evil")


def test_a_chain_of_links_does_not_lead_out(tmp_path):
    """CVE-2025-4517: the filter stops resolving beyond the longest path it can."""
    deep, steps, path, links = "d" * 247, "abcdefghijklmnop", "", []
    for step in steps:
        links.append(member(os.path.join(path, deep), tarfile.DIRTYPE))
        links.append(member(os.path.join(path, step), tarfile.SYMTYPE, deep))
        path = os.path.join(path, deep)
    long = f"{'/'.join(steps)}/{'l' * 254}"
    links.append(member(long, tarfile.SYMTYPE, "../" * len(steps)))
    links.append(member("escape", tarfile.SYMTYPE, f"{long}/../"))
    links.append(member("link", tarfile.LNKTYPE, "escape/victim.txt"))
    links.append(member("link"))  # writes through it
    (tmp_path / "victim.txt").write_text("of someone else")
    archive = official_archives.write_tar(tmp_path / "some.tar", {}, *links)
    with pytest.raises(UserError, match=r"no plain file or folder"):
        extract(archive, tmp_path / "out", wanted=None)
    assert (tmp_path / "victim.txt").read_text() == "of someone else"


def test_more_than_the_limit_is_refused_before_it_is_written(tmp_path):
    # FILES and 1 MiB, which gzip makes small.
    archive = official_archives.write_tar(
        tmp_path / "some.tgz", FILES | {"top/a/big.bin": bytes(1 << 20)}
    )
    limit = sum(map(len, FILES.values())) + (1 << 20)
    extract(archive, tmp_path / "out", limit=limit)
    message = r"some.tgz has more than 0.000977 GiB of files; refused, extract it"
    refused(message, archive, tmp_path / "other", limit=limit - 1)
    assert sorted(os.listdir(tmp_path)) == ["out", "some.tgz"]


def test_what_is_not_wanted_does_not_count(tmp_path):
    archive = official_archives.write_tar(tmp_path / "some.tar", FILES)
    folder = extract(archive, tmp_path / "out", ("top/c.txt",), limit=3)
    assert files_in(folder) == {"top/c.txt": b"see"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    archive = official_archives.write_tar(tmp_path / "some.tar", FILES)
    (tmp_path / "file").write_bytes(b"")
    refused(
        rf"some.tar cannot be extracted into {tmp_path}/file: .*Not a directory",
        archive,
        tmp_path / "file/out",
    )
    # Where the mark of completeness belongs.
    evil = member("archive.txt", tarfile.DIRTYPE)
    archive = official_archives.write_tar(tmp_path / "evil.tar", FILES, evil)
    message = "evil.tar cannot be extracted into .*Is a directory"
    refused(message, archive, tmp_path / "out", wanted=None)
    assert sorted(os.listdir(tmp_path)) == ["evil.tar", "file", "some.tar"]


def cut_tar(path):
    content = path.read_bytes()
    path.write_bytes(content[:1200])  # in the second file


def cut_gzip(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40])


def broken_gzip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 255  # of the checksum
    path.write_bytes(content)


def no_archive(path):
    path.write_bytes(b"<html>moved</html>" * 100)


def empty(path):
    path.write_bytes(b"")


BROKEN = {
    "cut": ("some.tar", cut_tar),
    "cut gzip": ("some.tgz", cut_gzip),
    "wrong checksum": ("some.tgz", broken_gzip),
    "page of a portal": ("some.tar", no_archive),
    "empty": ("some.tar", empty),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_archive_is_named_and_leaves_nothing(tmp_path, kind):
    name, damage = BROKEN[kind]
    files = FILES | {"top/a/noise.bin": os.urandom(20_000)}
    archive = official_archives.write_tar(tmp_path / name, files)
    damage(archive)
    reason = find_damage(epath.Path(archive))
    assert reason and "\n" not in reason
    message = f"{re.escape(name)} cannot be extracted: {re.escape(reason)}$"
    refused(message, archive, tmp_path / "out")
    assert os.listdir(tmp_path) == [name]


def test_a_whole_archive_has_no_damage(tmp_path):
    for name in ("some.tar", "some.tgz"):
        archive = official_archives.write_tar(tmp_path / name, FILES)
        assert find_damage(epath.Path(archive)) is None


def test_a_python_without_the_filter_is_told(tmp_path, monkeypatch):
    archive = official_archives.write_tar(tmp_path / "some.tar", FILES)
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"needs Python 3.10.12, 3.11.4 or later"):
        extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["some.tar"]


def test_the_helper_writes_what_it_says(tmp_path):
    path = official_archives.write_tar(tmp_path / "x.tgz", FILES)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as tar:
        assert tar.getnames() == list(FILES)
