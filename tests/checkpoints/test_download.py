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

from deeplab_tf.checkpoints import download
from deeplab_tf.checkpoints.download import fetch, local_path
from deeplab_tf.errors import UserError

# More than two blocks of what is read at once.
CONTENT = bytes(range(256)) * 9000
OTHER = CONTENT[::-1]


class Handler(loopback.QuietHandler, http.server.BaseHTTPRequestHandler):
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
    with loopback.serve(Handler) as server:
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
    message = (
        r"cannot be downloaded: it was interrupted after 1500000 of 2304000 bytes; "
    )
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
    with pytest.raises(
        UserError, match=rf"of its first use .*remove {path} to download"
    ):
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


def write_origin(text):
    return lambda cache, server: (cache / "some.tar.gz.part.from").write_bytes(
        text.replace(b"{url}", server.url.encode())
    )


def change_file(cache, server):
    server.content, server.tag = OTHER, '"two"'


def link_elsewhere(cache, server):
    os.link(cache / "some.tar.gz.part", cache.parent / "victim")


CUT = "bytes=1500000-"
# What happens after a download broke off, and the ranges that are then asked for.
RESTARTS = {
    "the file changed": (change_file, [CUT]),
    "no ranges": (lambda cache, server: setattr(server, "ranges", False), [CUT]),
    "another URL": (
        lambda cache, server: setattr(server, "url", f"{server.url}&mirror"),
        [None],
    ),
    "the part is complete": (
        lambda cache, server: (cache / "some.tar.gz.part").write_bytes(CONTENT),
        [f"bytes={len(CONTENT)}-", None],
    ),
    "the part is linked elsewhere": (link_elsewhere, [None]),
    "the origin is cut short": (write_origin(b"{url}\n"), [None]),
    "the origin is empty": (write_origin(b""), [None]),
    "the origin is not UTF-8": (write_origin(b"\xff\xfe" * 100), [None]),
    "the origin is large": (write_origin(b"x\n" * 100_000), [None]),
    "the origin has no fields": (write_origin(b"\n\n\n"), [None]),
    "the tag has a line break": (write_origin(b'{url}\n"\r"\n7\n'), [None]),
}


@pytest.mark.parametrize("kind", RESTARTS)
def test_a_part_that_cannot_be_trusted_begins_anew(server, cache, cut, kind):
    change, asked = RESTARTS[kind]
    change(cache, server)
    assert read(fetch(server.url, str(cache))) == server.content
    assert server.asked == [None, *asked]
    victim = cache.parent / "victim"
    assert not victim.exists() or read(victim) == CONTENT[:cut]


@pytest.mark.parametrize("change", ["tag", "time", "size"])
def test_a_server_that_sends_a_part_of_another_file_is_not_believed(
    server, cache, change
):
    server.ignores_if_range, server.cut = True, 1_500_000
    if change == "time":
        server.tag, server.time = "", "Thu, 04 Jan 2018 00:00:00 GMT"
    with pytest.raises(UserError, match="was interrupted"):
        fetch(server.url, str(cache))
    server.cut, server.content = None, OTHER + b"more" * (change == "size")
    if change == "tag":
        server.tag = '"two"'
    if change == "time":
        server.time = "Fri, 05 Jan 2018 00:00:00 GMT"
    assert read(fetch(server.url, str(cache))) == server.content
    assert server.asked == [None, "bytes=1500000-", None]


def test_what_is_damaged_is_not_kept_and_has_no_recorded_sum(server, cache):
    def find_damage(path):
        return None if read(path) == CONTENT else "it is another"

    server.content = OTHER
    url = server.url.replace("?", ".")
    message = rf"some.tar.gz is damaged or unsafe: it is .*from {url}, not"
    with pytest.raises(UserError, match=message):
        fetch(server.url, str(cache), find_damage=find_damage)
    assert left(cache) == []
    path = cache / "some.tar.gz"  # as by hand
    path.write_bytes(OTHER)
    with pytest.raises(
        UserError, match=rf"is damaged or unsafe: .*; remove {path} to download it"
    ):
        fetch(server.url, str(cache), find_damage=find_damage)
    assert left(cache) == ["some.tar.gz"]
    path.unlink()
    server.content = CONTENT
    for _ in range(2):
        found = fetch(server.url, str(cache), find_damage=find_damage)
        assert read(found) == CONTENT
    assert left(cache) == ["some.tar.gz", "some.tar.gz.sha256"]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_a_file_that_cannot_be_known_again_begins_anew(server, cache, tag):
    server.tag, server.cut = tag, 1_500_000
    with pytest.raises(UserError, match="was interrupted"):
        fetch(server.url, str(cache))
    server.cut = None
    assert read(fetch(server.url, str(cache))) == CONTENT
    assert server.asked == [None, None]


def test_another_part_than_was_asked_for_is_refused(server, cache, cut, monkeypatch):
    wrong = functools.partialmethod(send_wrong_range)
    monkeypatch.setattr(Handler, "do_GET", wrong)
    with pytest.raises(UserError, match="from 1500000 on but sent bytes 7-9/2304000"):
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
    message = (
        rf"^{url.replace('?', '.')} cannot be downloaded: .*put the file at {path}$"
    )
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
    with pytest.raises(UserError, match=r"none.tar.gz cannot be downloaded: "):
        fetch(missing, str(cache))


@pytest.mark.parametrize("path", ["", "a/", "a/.", "a/..", "?file=a.tgz"])
def test_a_url_without_a_file_is_refused(cache, path):
    url = f"https://example.org/{path}"
    with pytest.raises(UserError, match=rf"^{re.escape(url)} does not name a file$"):
        fetch(url, str(cache))


def test_what_is_no_url_is_refused(cache):
    with pytest.raises(
        UserError, match=r"^http://\[::1/a.tgz is not a valid URL: Invalid IPv6"
    ):
        fetch("http://[::1/a.tgz", str(cache))


@pytest.mark.parametrize("name", ["modèle.tar.gz", "my model.tar.gz", "a%2Fb.tar.gz"])
def test_urls_may_be_spelled_as_they_are_read(server, cache, name):
    url = server.url.replace("some.tar.gz", name).replace("http:", "HTTP:")
    assert read(fetch(url, str(cache))) == CONTENT
    assert left(cache) == [name, f"{name}.sha256"]


def test_a_cache_that_cannot_be_used_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = (
        rf"^the cache {tmp_path}/file cannot be used: .*; give another folder as "
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
def test_what_is_no_plain_file_is_refused(server, tmp_path, cache, suffix, kind):
    cache.mkdir()
    (tmp_path / "victim").write_bytes(b"of someone else")
    path = cache / f"some.tar.gz{suffix}"
    KINDS[kind](path)
    message = rf"^{path} is {kind}, not a plain file; remove it$"
    with pytest.raises(UserError, match=message):
        fetch(server.url, str(cache))
    assert (tmp_path / "victim").read_bytes() == b"of someone else"
    assert server.asked == []


def announce(length, body=b"some", status=200, **headers):
    """Returns what a server sends that announces a length."""
    lines = [f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items()]
    start = f"HTTP/1.1 {status} OK\r\nContent-Length: {length}\r\n"
    return (start + "".join(lines) + "\r\n").encode() + body


def chunked(*chunks):
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


NO_SIZE = r"its size of .{1,40} bytes is not in 0\.\.4294967296"
# What a server sends, and why it is refused.
HOSTILE = {
    "a negative size": (announce(-5), NO_SIZE),
    "a size of 5000 digits": (announce(5000 * "9"), NO_SIZE),
    "a size of other digits": (announce("\xb2"), NO_SIZE),
    "a size of 1 TiB": (announce(1 << 40), NO_SIZE),
    "a negative range": (
        announce(4, status=206, Content_Range="bytes 0-3/-4"),
        NO_SIZE,
    ),
    "a range of 5000 digits": (
        announce(4, status=206, Content_Range=f"bytes 0-3/{5000 * '9'}"),
        NO_SIZE,
    ),
    "more than announced": (
        announce(2000, bytes(2000), 206, Content_Range="bytes 0-3/4"),
        "more than 4 bytes were sent",
    ),
    "less than announced": (announce(5), "it was interrupted after 4 of 5 bytes"),
    "pieces without end": (
        chunked(*100 * [b"400\r\n" + bytes(1024) + b"\r\n"]),
        "more than 65536 bytes were sent",
    ),
    "a piece of negative size": (
        chunked(b"-1\r\n" + bytes(100_000)),
        "more than 65536 bytes were sent",
    ),
    "a body without end": (
        b"HTTP/1.0 200 OK\r\n\r\n" + bytes(100_000),
        "more than 65536 bytes were sent",
    ),
    "a header without end": (b"HTTP/1.1 200 OK\r\nX: " + 100_000 * b"x", "header line"),
    "headers without end": (
        b"HTTP/1.1 200 OK\r\n" + 200 * b"X: y\r\n",
        "more than 100 headers",
    ),
    "nothing": (b"", "Remote end closed connection"),
    "another protocol": (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
    "a reason for the terminal": (
        b"HTTP/1.1 404 \x1b[2J" + 5000 * b"x" + b"\r\n\r\n",
        r"HTTP Error 404: \?\[2Jx{50,300};",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_is_refused_in_one_line(server, cache, kind, monkeypatch):
    sent, message = HOSTILE[kind]
    if "65536" in message:
        monkeypatch.setattr(download, "_LIMIT", 65536)
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.wfile.write(sent))
    with pytest.raises(UserError, match=f"cannot be downloaded: .*{message}") as error:
        fetch(server.url, str(cache))
    assert str(error.value).isprintable() and len(str(error.value)) < 700
    assert "some.tar.gz" not in left(cache)
    assert all(path.stat().st_size <= 65536 for path in cache.iterdir())


def test_a_piece_of_negative_size_is_not_read_into_memory(server, cache, monkeypatch):
    sizes, pour = [], download._copy_stream

    def record(read, file, total):
        def read_and_record(size):
            block = read(size)
            sizes.append(len(block))
            return block

        pour(read_and_record, file, total)

    sent = chunked(b"-1\r\n" + bytes(1_000_000))
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
def test_a_redirect_elsewhere_is_refused_in_one_line(
    server, cache, target, monkeypatch
):
    def redirect(handler):
        handler.wfile.write(announce(4, status=302, Location=target))

    monkeypatch.setattr(Handler, "do_GET", redirect)
    with pytest.raises(UserError, match=r"^http.* cannot be downloaded: ") as error:
        fetch(server.url, str(cache))
    assert str(error.value).isprintable()
    if target.startswith(("ftp", "file", "gs")):
        assert "is not allowed" in str(error.value)
    assert left(cache) == []


def test_a_redirect_to_a_web_server_is_followed(server, cache, monkeypatch):
    send = Handler.do_GET

    def redirect(handler):
        if "moved" in handler.path:
            return send(handler)
        location = server.url.replace("some", "moved")
        # Nobody reads the page of a redirect, which may have no end.
        answer = announce(1 << 40, bytes(1 << 20), status=302, Location=location)
        return handler.wfile.write(answer)

    monkeypatch.setattr(Handler, "do_GET", redirect)
    assert read(fetch(server.url, str(cache))) == CONTENT
    assert left(cache) == ["some.tar.gz", "some.tar.gz.sha256"]


def test_file_urls_and_home_folders_are_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for url in ("file:///a%20b/c.tgz", "file:/a b/c.tgz", "FILE://localhost/a b/c.tgz"):
        assert local_path(url) == "/a b/c.tgz"
    assert local_path("~/c.tgz") == "/home/someone/c.tgz"
    for path in ("c.tgz", "/~/c.tgz", "gs://bucket/a%20b.tgz", "https://a.org/c.tgz"):
        assert local_path(path) == path
