"""Downloads archives over a real connection and from a real disk."""

import functools
import hashlib
import http.server
import os

import loopback
import pytest
from etils import epath

from deeplab_tf.convert import sources
from deeplab_tf.errors import UserError

FILES = {"top/a/1.txt": b"one", "top/a/b/2.txt": b"two", "top/c.txt": b"see"}
WANTED = ("top/a", "top/c.txt")


class Handler(loopback.QuietHandler, http.server.SimpleHTTPRequestHandler):
    """Serves a folder; with `server.is_cut`, stops half way through each file."""

    def do_GET(self):
        self.server.hits.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile):
        content = source.read()
        size = len(content) // 2 if self.server.is_cut else len(content)
        outputfile.write(content[:size])


@pytest.fixture
def server(tmp_path):
    """A server of tmp_path/web that records requested paths in `.hits`."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    with loopback.serve(handler) as server:
        server.hits, server.is_cut = [], False
        yield server


@pytest.fixture
def content(tmp_path, server):
    """The bytes of web/some.tar; larger than one read."""
    content = os.urandom(300_000)
    (tmp_path / "web/some.tar").write_bytes(content)
    return content


@pytest.fixture
def downloads(tmp_path):
    return epath.Path(tmp_path / "downloads")


def list_files(folder):
    """Returns the names of the files in a folder, except locks."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_archive_is_downloaded_once(server, content, downloads):
    digest = hashlib.sha256(content).hexdigest()
    source = sources.Source(f"{server.url}/some.tar", digest)
    path = sources.fetch(source, downloads)
    assert path.read_bytes() == content
    assert sources.fetch(source, downloads) == path
    assert server.hits == ["/some.tar"]


def test_archive_with_wrong_sha256_is_refused_and_removed(server, content, downloads):
    source = sources.Source(f"{server.url}/some.tar", "0" * 64)
    message = rf"some.tar has the SHA-256 .* that was published, {64 * '0'}; .*not kept"
    with pytest.raises(UserError, match=message):
        sources.fetch(source, downloads)
    assert list_files(downloads) == []


def test_archive_changed_on_disk_is_refused(server, content, downloads):
    digest = hashlib.sha256(content).hexdigest()
    source = sources.Source(f"{server.url}/some.tar", digest)
    sources.fetch(source, downloads).write_bytes(b"other")
    with pytest.raises(UserError, match=r"some.tar has the SHA-256 .*; remove .*some"):
        sources.fetch(source, downloads)


def test_md5_is_verified_without_sha256(server, content, downloads):
    url = f"{server.url}/some.tar"
    md5 = hashlib.md5(content).hexdigest()
    wrong_source = sources.Source(url, md5="0" * 32)
    for _ in range(2):  # a wrong file that is kept would be used the second time
        with pytest.raises(UserError, match=rf"its MD5 is {md5}, not {32 * '0'}; "):
            sources.fetch(wrong_source, downloads)
        assert list_files(downloads) == []
    for _ in range(2):
        path = sources.fetch(sources.Source(url, md5=md5), downloads)
        assert path.read_bytes() == content
    assert len(server.hits) == 3


def test_lost_connection_leaves_no_archive_and_next_run_retries(
    server, content, downloads
):
    server.is_cut = True
    source = sources.Source(f"{server.url}/some.tar")
    with pytest.raises(
        UserError, match="cannot be downloaded: it was interrupted after 150000"
    ):
        sources.fetch(source, downloads)
    assert "some.tar" not in list_files(downloads)
    server.is_cut = False
    assert sources.fetch(source, downloads).read_bytes() == content


def test_missing_archive_is_reported(server, downloads):
    source = sources.Source(f"{server.url}/none.tar")
    with pytest.raises(UserError, match=r"/none.tar cannot be downloaded: .*404"):
        sources.fetch(source, downloads)


def test_file_url_is_copied(tmp_path, downloads):
    (tmp_path / "here.tar").write_bytes(b"some bytes")
    source = sources.Source(f"file://{tmp_path}/here.tar")
    assert sources.fetch(source, downloads).read_bytes() == b"some bytes"
    missing = sources.Source(f"file://{tmp_path}/none.tar")
    with pytest.raises(
        UserError, match=r"none.tar cannot be downloaded: .*No such file"
    ):
        sources.fetch(missing, downloads)
