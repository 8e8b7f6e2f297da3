"""Archives over a real connection and off a real disk: intact, or one line of error."""

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


class Handler(loopback.Quiet, http.server.SimpleHTTPRequestHandler):
    """Serves a folder; ends the connection half way if the server says so."""

    def do_GET(self):
        self.server.hits.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile):
        content = source.read()
        size = len(content) // 2 if self.server.is_cut else len(content)
        outputfile.write(content[:size])


@pytest.fixture
def server(tmp_path):
    """A server of the files in tmp_path/web; `.url` and `.hits`."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    with loopback.serving(handler) as server:
        server.hits, server.is_cut = [], False
        yield server


@pytest.fixture
def content(tmp_path, server):
    """The bytes of web/some.tar, more than are read at once."""
    content = os.urandom(300_000)
    (tmp_path / "web/some.tar").write_bytes(content)
    return content


@pytest.fixture
def downloads(tmp_path):
    return epath.Path(tmp_path / "downloads")


def left(folder):
    """Returns what is in a folder besides locks."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_an_archive_is_fetched_once(server, content, downloads):
    digest = hashlib.sha256(content).hexdigest()
    source = sources.Source(f"{server.url}/some.tar", digest)
    path = sources.fetch(source, downloads)
    assert path.read_bytes() == content
    assert sources.fetch(source, downloads) == path
    assert server.hits == ["/some.tar"]


def test_another_archive_is_refused_and_removed(server, content, downloads):
    source = sources.Source(f"{server.url}/some.tar", "0" * 64)
    message = rf"some.tar has the SHA-256 .* that was published, {64 * '0'}; .*not kept"
    with pytest.raises(UserError, match=message):
        sources.fetch(source, downloads)
    assert left(downloads) == []


def test_an_archive_that_changed_on_disk_is_refused(server, content, downloads):
    digest = hashlib.sha256(content).hexdigest()
    source = sources.Source(f"{server.url}/some.tar", digest)
    sources.fetch(source, downloads).write_bytes(b"other")
    with pytest.raises(UserError, match=r"some.tar has the SHA-256 .*; remove .*some"):
        sources.fetch(source, downloads)


def test_the_md5_is_verified_if_no_sha256_was_published(server, content, downloads):
    url = f"{server.url}/some.tar"
    right = hashlib.md5(content).hexdigest()
    wrong = sources.Source(url, md5="0" * 32)
    for _ in range(2):  # a wrong file that stayed would be taken the second time
        with pytest.raises(UserError, match=rf"its MD5 is {right}, not {32 * '0'}; "):
            sources.fetch(wrong, downloads)
        assert left(downloads) == []
    for _ in range(2):
        found = sources.fetch(sources.Source(url, md5=right), downloads)
        assert found.read_bytes() == content
    assert len(server.hits) == 3


def test_a_cut_connection_leaves_no_archive_and_the_next_run_fetches_it(
    server, content, downloads
):
    server.is_cut = True
    source = sources.Source(f"{server.url}/some.tar")
    with pytest.raises(
        UserError, match="cannot be downloaded: it was interrupted after 150000"
    ):
        sources.fetch(source, downloads)
    assert "some.tar" not in left(downloads)
    server.is_cut = False
    assert sources.fetch(source, downloads).read_bytes() == content


def test_what_the_server_does_not_have_is_named(server, downloads):
    source = sources.Source(f"{server.url}/none.tar")
    with pytest.raises(UserError, match=r"/none.tar cannot be downloaded: .*404"):
        sources.fetch(source, downloads)


def test_a_file_url_is_copied(tmp_path, downloads):
    (tmp_path / "here.tar").write_bytes(b"some bytes")
    source = sources.Source(f"file://{tmp_path}/here.tar")
    assert sources.fetch(source, downloads).read_bytes() == b"some bytes"
    missing = sources.Source(f"file://{tmp_path}/none.tar")
    with pytest.raises(
        UserError, match=r"none.tar cannot be downloaded: .*No such file"
    ):
        sources.fetch(missing, downloads)
