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
