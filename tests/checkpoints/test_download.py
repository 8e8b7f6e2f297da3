"""Downloads over HTTP and from disk: resuming, verification and errors."""

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

from deeplab_tf.checkpoints import download
from deeplab_tf.checkpoints.download import fetch, local_path
from deeplab_tf.errors import UserError

# More than two read blocks.
CONTENT = bytes(range(256)) * 9000
OTHER = CONTENT[::-1]


class Handler(loopback.QuietHandler, http.server.BaseHTTPRequestHandler):
    """Serves one file and ranges of it, as configured on the server."""

    def do_GET(self):
        server, requested = self.server, self.headers.get("Range")
        server.requested.append(requested)
        time.sleep(server.delay)
        start = 0
        same = self.headers.get("If-Range", server.tag) == server.tag
        same = same or server.ignores_if_range
        if requested and server.ranges and same:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            last, total = len(server.content) - 1, len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.time:
            self.send_header("Last-Modified", server.time)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.body_limit])


@pytest.fixture
def server():
    """A server of `CONTENT`; `requested` collects the Range header of requests."""
    with loopback.serve(Handler) as server:
        server.content, server.tag, server.ranges = CONTENT, '"one"', True
        server.body_limit, server.delay, server.requested = None, 0.0, []
        server.ignores_if_range, server.time = False, ""
        server.url += "/some.tar.gz?download=1"
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def partial_size(server, cache):
    """The number of bytes that an interrupted download left in the cache."""
    server.body_limit = 1_500_000
    message = (
        r"cannot be downloaded: it was interrupted after 1500000 of 2304000 bytes; "
    )
    with pytest.raises(UserError, match=message):
        fetch(server.url, str(cache))
    assert "some.tar.gz" not in os.listdir(cache)
    server.body_limit = None
    return 1_500_000


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def read(path):
    return pathlib.Path(path).read_bytes()


def cached_files(cache):
    """Returns the names of the files in the cache, without locks."""
    names = os.listdir(cache) if cache.exists() else []
    return sorted(name for name in names if not name.endswith(".lock"))


def test_file_is_fetched_once_and_its_digest_recorded(server, cache):
    path = fetch(server.url, str(cache))
    assert path == str(cache / "some.tar.gz")
    assert read(path) == CONTENT
    assert fetch(server.url, str(cache)) == path
    assert server.requested == [None]
    assert cached_files(cache) == ["some.tar.gz", "some.tar.gz.sha256"]
    record = (cache / "some.tar.gz.sha256").read_text()
    assert record == f"{sha256(CONTENT)}  some.tar.gz\n"


def test_published_digest_is_enforced(server, cache):
    with pytest.raises(
        UserError, match=rf"some.tar.gz has the SHA-256 {sha256(CONTENT)}"
    ):
        fetch(server.url, str(cache), sha256(OTHER))
    assert cached_files(cache) == []
    path = fetch(server.url, str(cache), sha256(CONTENT))
    assert cached_files(cache) == ["some.tar.gz"]
    pathlib.Path(path).write_bytes(OTHER)
    with pytest.raises(UserError, match=rf" was published; remove {path} to"):
        fetch(server.url, str(cache), sha256(CONTENT))


def test_recorded_digest_is_enforced(server, cache):
    path = pathlib.Path(fetch(server.url, str(cache)))
    path.write_bytes(OTHER)
    with pytest.raises(
        UserError, match=rf"recorded on its first use .*remove {path} to download"
    ):
        fetch(server.url, str(cache))
    path.unlink()
    server.content = OTHER
    with pytest.raises(
        UserError, match=rf"recorded on its first use \({path}.sha256\)"
    ):
        fetch(server.url, str(cache))
    server.content = CONTENT
    assert read(fetch(server.url, str(cache))) == CONTENT


def test_interrupted_download_resumes(server, cache, partial_size):
    assert read(fetch(server.url, str(cache), sha256(CONTENT))) == CONTENT
    assert server.requested == [None, f"bytes={partial_size}-"]
    assert cached_files(cache) == ["some.tar.gz"]


def write_origin(text):
    return lambda cache, server: (cache / "some.tar.gz.part.from").write_bytes(
        text.replace(b"{url}", server.url.encode())
    )


def change_file(cache, server):
    server.content, server.tag = OTHER, '"two"'


def link_elsewhere(cache, server):
    os.link(cache / "some.tar.gz.part", cache.parent / "victim")


RESUMED_RANGE = "bytes=1500000-"
# A change after an interrupted download, and the ranges requested next.
RESTARTS = {
    "changed file": (change_file, [RESUMED_RANGE]),
    "server without ranges": (
        lambda cache, server: setattr(server, "ranges", False),
        [RESUMED_RANGE],
    ),
    "different URL": (
        lambda cache, server: setattr(server, "url", f"{server.url}&mirror"),
        [None],
    ),
    "complete part": (
        lambda cache, server: (cache / "some.tar.gz.part").write_bytes(CONTENT),
        [f"bytes={len(CONTENT)}-", None],
    ),
    "hard-linked part": (link_elsewhere, [None]),
    "truncated origin": (write_origin(b"{url}\n"), [None]),
    "empty origin": (write_origin(b""), [None]),
    "origin not UTF-8": (write_origin(b"\xff\xfe" * 100), [None]),
    "large origin": (write_origin(b"x\n" * 100_000), [None]),
    "origin without fields": (write_origin(b"\n\n\n"), [None]),
    "line break in the tag": (write_origin(b'{url}\n"\r"\n7\n'), [None]),
}


@pytest.mark.parametrize("kind", RESTARTS)
def test_untrusted_partial_download_restarts(server, cache, partial_size, kind):
    change, requested = RESTARTS[kind]
    change(cache, server)
    assert read(fetch(server.url, str(cache))) == server.content
    assert server.requested == [None, *requested]
    victim = cache.parent / "victim"
    assert not victim.exists() or read(victim) == CONTENT[:partial_size]


@pytest.mark.parametrize("change", ["tag", "time", "size"])
def test_range_of_a_different_file_is_discarded(server, cache, change):
    server.ignores_if_range, server.body_limit = True, 1_500_000
    if change == "time":
        server.tag, server.time = "", "Thu, 04 Jan 2018 00:00:00 GMT"
    with pytest.raises(UserError, match="was interrupted"):
        fetch(server.url, str(cache))
    server.body_limit, server.content = None, OTHER + b"more" * (change == "size")
    if change == "tag":
        server.tag = '"two"'
    if change == "time":
        server.time = "Fri, 05 Jan 2018 00:00:00 GMT"
    assert read(fetch(server.url, str(cache))) == server.content
    assert server.requested == [None, "bytes=1500000-", None]


def test_damaged_download_is_not_kept_or_recorded(server, cache):
    def find_damage(path):
        return None if read(path) == CONTENT else "it is another"

    server.content = OTHER
    url = server.url.replace("?", ".")
    message = rf"some.tar.gz is damaged or unsafe: it is .*from {url}, not"
    with pytest.raises(UserError, match=message):
        fetch(server.url, str(cache), find_damage=find_damage)
    assert cached_files(cache) == []
    path = cache / "some.tar.gz"  # as if put there by hand
    path.write_bytes(OTHER)
    with pytest.raises(
        UserError, match=rf"is damaged or unsafe: .*; remove {path} to download it"
    ):
        fetch(server.url, str(cache), find_damage=find_damage)
    assert cached_files(cache) == ["some.tar.gz"]
    path.unlink()
    server.content = CONTENT
    for _ in range(2):
        found = fetch(server.url, str(cache), find_damage=find_damage)
        assert read(found) == CONTENT
    assert cached_files(cache) == ["some.tar.gz", "some.tar.gz.sha256"]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_download_without_a_strong_etag_restarts(server, cache, tag):
    server.tag, server.body_limit = tag, 1_500_000
    with pytest.raises(UserError, match="was interrupted"):
        fetch(server.url, str(cache))
    server.body_limit = None
    assert read(fetch(server.url, str(cache))) == CONTENT
    assert server.requested == [None, None]


def test_wrong_range_is_refused(server, cache, partial_size, monkeypatch):
    wrong = functools.partialmethod(send_wrong_range)
    monkeypatch.setattr(Handler, "do_GET", wrong)
    with pytest.raises(UserError, match="from 1500000 but sent bytes 7-9/2304000"):
        fetch(server.url, str(cache))
    assert "some.tar.gz" not in cached_files(cache)


def send_wrong_range(handler):
    handler.send_response(206)
    handler.send_header("Content-Range", "bytes 7-9/2304000")
    handler.end_headers()


def test_offline_error_says_where_to_put_the_file(server, cache):
    url = server.url
    server.shutdown()
    server.server_close()
    path = cache / "some.tar.gz"
    message = (
        rf"^{url.replace('?', '.')} cannot be downloaded: .*save the file as {path}$"
    )
    with pytest.raises(UserError, match=message) as error:
        fetch(url, str(cache))
    assert "\n" not in str(error.value)
    path.write_bytes(CONTENT)
    assert fetch(url, str(cache)) == str(path)
    assert (cache / "some.tar.gz.sha256").exists()


def test_concurrent_fetches_download_once(server, cache):
    server.delay = 0.2  # all threads start before the first is done
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
    assert server.requested == [None]
    assert read(found[0]) == CONTENT


@pytest.mark.parametrize("kind", ["path", "file", "uri", "ram"])
def test_local_and_remote_paths_are_copied(kind, tmp_path, cache):
    folder = tmp_path / "a zoo"
    folder.mkdir()
    path = folder / "some.tar.gz"
    path.write_bytes(CONTENT)
    spellings = {"path": str(path), "file": f"file://{path}", "uri": path.as_uri()}
    if kind == "ram":
        spellings["ram"] = "ram://test_download/some.tar.gz"
        tf.io.gfile.makedirs("ram://test_download")
        tf.io.gfile.copy(str(path), spellings["ram"], overwrite=True)
    assert read(fetch(spellings[kind], str(cache))) == CONTENT
    missing = spellings[kind].replace("some", "none")
    with pytest.raises(UserError, match=r"none.tar.gz cannot be downloaded: "):
        fetch(missing, str(cache))


@pytest.mark.parametrize("path", ["", "a/", "a/.", "a/..", "?file=a.tgz"])
def test_url_without_a_file_name_is_refused(cache, path):
    url = f"https://example.org/{path}"
    with pytest.raises(UserError, match=rf"^{re.escape(url)} does not name a file$"):
        fetch(url, str(cache))


def test_invalid_url_is_refused(cache):
    with pytest.raises(
        UserError, match=r"^http://\[::1/a.tgz is not a valid URL: Invalid IPv6"
    ):
        fetch("http://[::1/a.tgz", str(cache))


@pytest.mark.parametrize("name", ["modèle.tar.gz", "my model.tar.gz", "a%2Fb.tar.gz"])
def test_escaped_and_unescaped_urls_are_accepted(server, cache, name):
    url = server.url.replace("some.tar.gz", name).replace("http:", "HTTP:")
    assert read(fetch(url, str(cache))) == CONTENT
    assert cached_files(cache) == [name, f"{name}.sha256"]


def test_error_names_unusable_cache(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = (
        rf"^the cache {tmp_path}/file cannot be used: .*; give a different folder as "
        "cache_dir or DEEPLAB_TF_CACHE$"
    )
    with pytest.raises(UserError, match=message) as error:
        fetch(server.url, str(tmp_path / "file"))
    assert "\n" not in str(error.value)


KINDS = {
    "a symbolic link": lambda path: path.symlink_to(path.parent.parent / "victim"),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", ".part", ".part.from", ".sha256", ".lock"])
def test_special_files_in_the_cache_are_refused(server, tmp_path, cache, suffix, kind):
    cache.mkdir()
    (tmp_path / "victim").write_bytes(b"of someone else")
    path = cache / f"some.tar.gz{suffix}"
    KINDS[kind](path)
    message = rf"^{path} is {kind}, not a regular file; remove it$"
    with pytest.raises(UserError, match=message):
        fetch(server.url, str(cache))
    assert (tmp_path / "victim").read_bytes() == b"of someone else"
    assert server.requested == []


def http_response(length, body=b"some", status=200, **headers):
    """Returns an HTTP response with a Content-Length header."""
    lines = [f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items()]
    start = f"HTTP/1.1 {status} OK\r\nContent-Length: {length}\r\n"
    return (start + "".join(lines) + "\r\n").encode() + body


def chunked_response(*chunks):
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


NO_SIZE = r"its size of .{1,40} bytes is not in 0\.\.4294967296"
# Bytes that a server sends, and the reason they are refused.
HOSTILE = {
    "negative size": (http_response(-5), NO_SIZE),
    "size of 5000 digits": (http_response(5000 * "9"), NO_SIZE),
    "size in superscript": (http_response("\xb2"), NO_SIZE),
    "size of 1 TiB": (http_response(1 << 40), NO_SIZE),
    "negative range": (
        http_response(4, status=206, Content_Range="bytes 0-3/-4"),
        NO_SIZE,
    ),
    "range of 5000 digits": (
        http_response(4, status=206, Content_Range=f"bytes 0-3/{5000 * '9'}"),
        NO_SIZE,
    ),
    "more bytes than announced": (
        http_response(2000, bytes(2000), 206, Content_Range="bytes 0-3/4"),
        "more than 4 bytes were sent",
    ),
    "fewer bytes than announced": (
        http_response(5),
        "it was interrupted after 4 of 5 bytes",
    ),
    "endless chunks": (
        chunked_response(*100 * [b"400\r\n" + bytes(1024) + b"\r\n"]),
        "more than 65536 bytes were sent",
    ),
    "negative chunk size": (
        chunked_response(b"-1\r\n" + bytes(100_000)),
        "more than 65536 bytes were sent",
    ),
    "endless body": (
        b"HTTP/1.0 200 OK\r\n\r\n" + bytes(100_000),
        "more than 65536 bytes were sent",
    ),
    "endless header": (b"HTTP/1.1 200 OK\r\nX: " + 100_000 * b"x", "header line"),
    "endless headers": (
        b"HTTP/1.1 200 OK\r\n" + 200 * b"X: y\r\n",
        "more than 100 headers",
    ),
    "empty response": (b"", "Remote end closed connection"),
    "different protocol": (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
    "escape sequence in the reason": (
        b"HTTP/1.1 404 \x1b[2J" + 5000 * b"x" + b"\r\n\r\n",
        r"HTTP Error 404: \?\[2Jx{50,300};",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_response_gives_one_line_error(server, cache, kind, monkeypatch):
    sent, message = HOSTILE[kind]
    if "65536" in message:
        monkeypatch.setattr(download, "_LIMIT", 65536)
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.wfile.write(sent))
    with pytest.raises(UserError, match=f"cannot be downloaded: .*{message}") as error:
        fetch(server.url, str(cache))
    assert str(error.value).isprintable() and len(str(error.value)) < 700
    assert "some.tar.gz" not in cached_files(cache)
    assert all(path.stat().st_size <= 65536 for path in cache.iterdir())


def test_negative_chunk_size_does_not_fill_memory(server, cache, monkeypatch):
    sizes, copy_stream = [], download._copy_stream

    def record(read, file, total):
        def read_and_record(size):
            block = read(size)
            sizes.append(len(block))
            return block

        copy_stream(read_and_record, file, total)

    sent = chunked_response(b"-1\r\n" + bytes(1_000_000))
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.wfile.write(sent))
    monkeypatch.setattr(download, "_copy_stream", record)
    monkeypatch.setattr(download, "_LIMIT", 900_000)
    with pytest.raises(UserError, match="more than 900000 bytes were sent"):
        fetch(server.url, str(cache))
    assert max(sizes) <= download._BLOCK


@pytest.mark.parametrize(
    "target",
    [
        *("ftp://127.0.0.1:1/some.tar.gz", "file:///etc/passwd", "gs://a/b.tgz"),
        *("http://[::1/some.tar.gz", "http://a..b/c", "http://127.0.0.1:x/", "/loop"),
    ],
)
def test_unsafe_redirect_gives_one_line_error(server, cache, target, monkeypatch):
    def redirect(handler):
        handler.wfile.write(http_response(4, status=302, Location=target))

    monkeypatch.setattr(Handler, "do_GET", redirect)
    with pytest.raises(UserError, match=r"^http.* cannot be downloaded: ") as error:
        fetch(server.url, str(cache))
    assert str(error.value).isprintable()
    if target.startswith(("ftp", "file", "gs")):
        assert "is not allowed" in str(error.value)
    assert cached_files(cache) == []


def test_http_redirect_is_followed(server, cache, monkeypatch):
    send = Handler.do_GET

    def redirect(handler):
        if "moved" in handler.path:
            return send(handler)
        location = server.url.replace("some", "moved")
        # The body of a redirect, which may be endless, is not read.
        response = http_response(1 << 40, bytes(1 << 20), status=302, Location=location)
        return handler.wfile.write(response)

    monkeypatch.setattr(Handler, "do_GET", redirect)
    assert read(fetch(server.url, str(cache))) == CONTENT
    assert cached_files(cache) == ["some.tar.gz", "some.tar.gz.sha256"]


def test_file_urls_and_home_folders_are_resolved(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for url in ("file:///a%20b/c.tgz", "file:/a b/c.tgz", "FILE://localhost/a b/c.tgz"):
        assert local_path(url) == "/a b/c.tgz"
    assert local_path("~/c.tgz") == "/home/someone/c.tgz"
    for path in ("c.tgz", "/~/c.tgz", "gs://bucket/a%20b.tgz", "https://a.org/c.tgz"):
        assert local_path(path) == path
