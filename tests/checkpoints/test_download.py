"""Downloads from a real server and off a disk: resumed, verified, or one line."""

import functools
import hashlib
import http.server
import os
import pathlib
import re
import threading
import time

import loopback
import pytest
import tensorflow as tf

from deeplab_tf.checkpoints.download import cache_folder, fetch, local_path
from deeplab_tf.errors import UserError

# More than two blocks of what is read at once.
CONTENT = bytes(range(256)) * 9000
OTHER = CONTENT[::-1]


class Handler(loopback.Quiet, http.server.BaseHTTPRequestHandler):
    """Serves one file, and parts of it, as its server says."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        time.sleep(server.delay)
        start = 0
        same = self.headers.get("If-Range", server.tag) == server.tag
        same = same or server.ignores_if_range
        if asked and server.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            last, whole = len(server.content) - 1, len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{last}/{whole}")
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.time:
            self.send_header("Last-Modified", server.time)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut])


@pytest.fixture
def server():
    """A server of `content`; `asked` has the Range of each request."""
    with loopback.serving(Handler) as server:
        server.content, server.tag, server.ranges = CONTENT, '"one"', True
        server.cut, server.delay, server.asked = None, 0.0, []
        server.ignores_if_range, server.time = False, ""
        server.url += "/some.tar.gz?download=1"
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cut(server, cache):
    """How much is in the cache of a download that broke off."""
    server.cut = 1_500_000
    message = r"cannot be fetched: it broke off after 1500000 of 2304000 bytes; "
    with pytest.raises(UserError, match=message):
        fetch(server.url, str(cache))
    assert "some.tar.gz" not in os.listdir(cache)
    server.cut = None
    return 1_500_000


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def read(path):
    return pathlib.Path(path).read_bytes()


def left(cache):
    """Returns what is in the cache besides locks."""
    names = os.listdir(cache) if cache.exists() else []
    return sorted(name for name in names if not name.endswith(".lock"))


def test_a_file_is_fetched_once_and_its_sum_recorded(server, cache):
    path = fetch(server.url, str(cache))
    assert path == str(cache / "some.tar.gz")
    assert read(path) == CONTENT
    assert fetch(server.url, str(cache)) == path
    assert server.asked == [None]
    assert left(cache) == ["some.tar.gz", "some.tar.gz.sha256"]
    record = (cache / "some.tar.gz.sha256").read_text()
    assert record == f"{sha256(CONTENT)}  some.tar.gz\n"


def test_a_published_sum_decides(server, cache):
    with pytest.raises(
        UserError, match=rf"some.tar.gz has the SHA-256 {sha256(CONTENT)}"
    ):
        fetch(server.url, str(cache), sha256(OTHER))
    assert left(cache) == []
    path = fetch(server.url, str(cache), sha256(CONTENT))
    assert left(cache) == ["some.tar.gz"]
    pathlib.Path(path).write_bytes(OTHER)
    with pytest.raises(UserError, match=rf"that was published, .*; remove {path} to"):
        fetch(server.url, str(cache), sha256(CONTENT))


def test_the_recorded_sum_is_compared(server, cache):
    path = pathlib.Path(fetch(server.url, str(cache)))
    path.write_bytes(OTHER)
    with pytest.raises(UserError, match=rf"of its first use .*remove {path} to fetch"):
        fetch(server.url, str(cache))
    path.unlink()
    server.content = OTHER
    with pytest.raises(UserError, match=rf"of its first use \({path}.sha256\)"):
        fetch(server.url, str(cache))
    server.content = CONTENT
    assert read(fetch(server.url, str(cache))) == CONTENT


def test_what_broke_off_goes_on(server, cache, cut):
    assert read(fetch(server.url, str(cache), sha256(CONTENT))) == CONTENT
    assert server.asked == [None, f"bytes={cut}-"]
    assert left(cache) == ["some.tar.gz"]


def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_one(server, cache, cut):
    server.content, server.tag = OTHER, '"two"'
    assert read(fetch(server.url, str(cache))) == OTHER
    assert server.asked == [None, f"bytes={cut}-"]


@pytest.mark.parametrize("change", ["tag", "time", "size"])
def test_a_server_that_sends_a_part_of_another_file_is_not_believed(
    server, cache, change
):
    server.ignores_if_range, server.cut = True, 1_500_000
    if change == "time":
        server.tag, server.time = "", "Thu, 04 Jan 2018 00:00:00 GMT"
    with pytest.raises(UserError, match="broke off"):
        fetch(server.url, str(cache))
    server.cut, server.content = None, OTHER + b"more" * (change == "size")
    if change == "tag":
        server.tag = '"two"'
    if change == "time":
        server.time = "Fri, 05 Jan 2018 00:00:00 GMT"
    assert read(fetch(server.url, str(cache))) == server.content
    assert server.asked == [None, "bytes=1500000-", None]


def test_a_part_whose_origin_was_cut_short_begins_anew(server, cache, cut):
    (cache / "some.tar.gz.part.from").write_text(f"{server.url}\n")
    assert read(fetch(server.url, str(cache))) == CONTENT
    assert server.asked == [None, None]


def test_what_is_damaged_is_not_kept_and_has_no_recorded_sum(server, cache):
    def find_damage(path):
        return None if read(path) == CONTENT else "it is another"

    server.content = OTHER
    message = rf"some.tar.gz is damaged: it is .*{server.url.replace('?', '.')} sent"
    with pytest.raises(UserError, match=message):
        fetch(server.url, str(cache), find_damage=find_damage)
    assert left(cache) == []
    path = cache / "some.tar.gz"  # as by hand
    path.write_bytes(OTHER)
    with pytest.raises(UserError, match=rf"is damaged: .*; remove {path} to fetch it"):
        fetch(server.url, str(cache), find_damage=find_damage)
    assert left(cache) == ["some.tar.gz"]
    path.unlink()
    server.content = CONTENT
    for _ in range(2):
        found = fetch(server.url, str(cache), find_damage=find_damage)
        assert read(found) == CONTENT
    assert left(cache) == ["some.tar.gz", "some.tar.gz.sha256"]


def test_a_server_without_ranges_sends_all_again(server, cache, cut):
    server.ranges = False
    assert read(fetch(server.url, str(cache))) == CONTENT


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_a_file_that_cannot_be_known_again_begins_anew(server, cache, tag):
    server.tag, server.cut = tag, 1_500_000
    with pytest.raises(UserError, match="broke off"):
        fetch(server.url, str(cache))
    server.cut = None
    assert read(fetch(server.url, str(cache))) == CONTENT
    assert server.asked == [None, None]


def test_a_part_of_another_url_is_not_gone_on_with(server, cache, cut):
    assert read(fetch(f"{server.url}&mirror", str(cache))) == CONTENT
    assert server.asked == [None, None]


def test_a_part_that_is_whole_already_begins_anew(server, cache, cut):
    (cache / "some.tar.gz.part").write_bytes(CONTENT)
    assert read(fetch(server.url, str(cache))) == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-", None]


def test_another_part_than_was_asked_for_is_refused(server, cache, cut, monkeypatch):
    wrong = functools.partialmethod(send_wrong_range)
    monkeypatch.setattr(Handler, "do_GET", wrong)
    with pytest.raises(UserError, match="from 1500000 on and sent bytes 7-9/2304000"):
        fetch(server.url, str(cache))
    assert "some.tar.gz" not in left(cache)


def send_wrong_range(handler):
    handler.send_response(206)
    handler.send_header("Content-Range", "bytes 7-9/2304000")
    handler.end_headers()


def test_without_a_network_one_line_says_where_to_put_the_file(server, cache):
    url = server.url
    server.shutdown()
    server.server_close()
    path = cache / "some.tar.gz"
    message = rf"^{url.replace('?', '.')} cannot be fetched: .*put the file at {path}$"
    with pytest.raises(UserError, match=message) as error:
        fetch(url, str(cache))
    assert "\n" not in str(error.value)
    path.write_bytes(CONTENT)
    assert fetch(url, str(cache)) == str(path)
    assert (cache / "some.tar.gz.sha256").exists()


def test_several_at_once_fetch_once(server, cache):
    server.delay = 0.2  # so that all of them are there before the first is done
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(server.url, str(cache))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == 4 * [str(cache / "some.tar.gz")]
    assert server.asked == [None]
    assert read(found[0]) == CONTENT


@pytest.mark.parametrize("kind", ["path", "file", "uri", "ram"])
def test_paths_are_copied(kind, tmp_path, cache):
    folder = tmp_path / "a zoo"
    folder.mkdir()
    path = folder / "some.tar.gz"
    path.write_bytes(CONTENT)
    spelled = {"path": str(path), "file": f"file://{path}", "uri": path.as_uri()}
    if kind == "ram":
        spelled["ram"] = "ram://test_download/some.tar.gz"
        tf.io.gfile.makedirs("ram://test_download")
        tf.io.gfile.copy(str(path), spelled["ram"], overwrite=True)
    assert read(fetch(spelled[kind], str(cache))) == CONTENT
    missing = spelled[kind].replace("some", "none")
    with pytest.raises(UserError, match=r"none.tar.gz cannot be fetched: "):
        fetch(missing, str(cache))


@pytest.mark.parametrize("path", ["", "a/", "a/.", "a/..", "?file=a.tgz"])
def test_a_url_without_a_file_is_refused(cache, path):
    url = f"https://example.org/{path}"
    with pytest.raises(UserError, match=rf"^{re.escape(url)} names no file$"):
        fetch(url, str(cache))


def test_what_is_no_url_is_refused(cache):
    with pytest.raises(UserError, match=r"^http://\[::1/a.tgz is no URL: Invalid IPv6"):
        fetch("http://[::1/a.tgz", str(cache))


@pytest.mark.parametrize("name", ["modèle.tar.gz", "my model.tar.gz", "a%2Fb.tar.gz"])
def test_urls_may_be_spelled_as_they_are_read(server, cache, name):
    url = server.url.replace("some.tar.gz", name).replace("http:", "HTTP:")
    assert read(fetch(url, str(cache))) == CONTENT
    assert left(cache) == [name, f"{name}.sha256"]


def test_a_cache_that_cannot_be_used_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder/some.tar.gz").mkdir(parents=True)
    (tmp_path / "part/some.tar.gz.part").mkdir(parents=True)
    for name in ("file", "folder", "part"):
        message = (
            rf"^the cache {tmp_path}/{name} cannot be used: .*; give another folder as "
            "cache_dir or DEEPLAB_TF_CACHE$"
        )
        with pytest.raises(UserError, match=message) as error:
            fetch(server.url, str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_file_urls_and_home_folders_are_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for url in ("file:///a%20b/c.tgz", "file:/a b/c.tgz", "FILE://localhost/a b/c.tgz"):
        assert local_path(url) == "/a b/c.tgz"
    assert local_path("~/c.tgz") == "/home/someone/c.tgz"
    for path in ("c.tgz", "/~/c.tgz", "gs://bucket/a%20b.tgz", "https://a.org/c.tgz"):
        assert local_path(path) == path


def test_the_cache_is_where_it_is_said_to_be(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("DEEPLAB_TF_CACHE", raising=False)
    assert cache_folder() == "/home/someone/.cache/deeplab_tf"
    monkeypatch.setenv("DEEPLAB_TF_CACHE", "~/weights")
    assert cache_folder() == "/home/someone/weights"
    assert cache_folder("/data") == "/data"
    with pytest.raises(UserError, match=r"on a disk of this machine; received gs://"):
        cache_folder("gs://bucket")
