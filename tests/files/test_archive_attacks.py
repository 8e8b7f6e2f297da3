"""Extracts hostile and mutated archives, and kills writers at every system call."""

import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tarfile

import hostile_tars
import loopback
import official_archives
import pytest
from etils import epath

from deeplab_tf.files import archives

pytestmark = pytest.mark.slow

TESTS = pathlib.Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
COMPRESSIONS = {
    "tar": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
SECONDS, MEBIBYTES = 10, 300


def measure_extraction(path, folder):
    """Extracts an archive in another process; returns its measurements."""
    command = [sys.executable, TESTS / "measure_extraction.py", path, folder]
    ended = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    for reason in filter(
        None, (result["damage"], result["error"], result["selection_error"])
    ):
        assert reason.isprintable() and len(reason) < 600
    assert result["seconds"] < SECONDS and result["mebibytes"] < MEBIBYTES, result
    print(
        f"{result['seconds']:.2f} s, {result['mebibytes']:.0f} MiB, {result['error']}"
    )
    return result


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file() and path.name != "archive.txt"
    }


ARCHIVES = hostile_tars.HOSTILE | hostile_tars.LARGE


@pytest.mark.parametrize("kind", ARCHIVES)
def test_hostile_archives_need_little_time_and_memory(tmp_path, kind):
    path = tmp_path / "some.tar"
    path.write_bytes(ARCHIVES[kind][0]())
    result = measure_extraction(path, tmp_path / "out")
    assert result["damage"] and result["error"] and result["selection_error"]
    assert sorted(os.listdir(tmp_path)) == ["some.tar"]


def test_known_hostile_archives_are_refused(tmp_path, asset):
    script = asset("cases/hostile_archives.py")
    (tmp_path / "cases").mkdir()
    subprocess.run([sys.executable, "-B", script, tmp_path / "cases"], check=True)
    for path in sorted((tmp_path / "cases").iterdir()):
        result = measure_extraction(path, tmp_path / path.name)
        # Modification times are ignored, so an infinite one is accepted.
        assert (result["error"] is None) == (path.name == "pax_mtime.tar"), path


@pytest.fixture(scope="module")
def content(asset):
    """A tar archive of 2 MB with a real checkpoint."""
    source = asset("weights/mobilenet_v2_voc_trainval")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(source.iterdir()):
            data = path.read_bytes()[: 1 << 20]
            info = tarfile.TarInfo(f"deeplabv3_mnv2_pascal_trainval/{path.name}")
            info.size, info.mtime = len(data), 1_516_000_000.5  # a pax header
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def mutate(content, rng):
    """Returns an archive with some bytes changed, removed, repeated or inserted."""
    content, start = bytearray(content), rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 2, 16, 512, 4096]))
    kind = rng.choice(
        ["flip", "flip near the start", "cut", "remove", "repeat", "noise"]
    )
    if kind == "flip":
        content[start] ^= 1 << rng.randrange(8)
    elif kind == "flip near the start":
        content[rng.randrange(min(1600, len(content)))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[start:]
    elif kind == "remove":
        del content[start:end]
    elif kind == "repeat":
        content[start:start] = content[start:end]
    else:
        content[start:end] = rng.randbytes(end - start)
    return bytes(content)


def mutate_header(content, rng):
    """Returns an archive with one header byte changed and a valid checksum."""
    content = bytearray(content)
    starts = [
        i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"
    ]
    start = rng.choice(starts)
    field = rng.choice([(0, 100), (124, 136), (156, 157), (257, 265), (345, 500)])
    content[start + rng.randrange(*field)] = rng.choice([0, 45, 48, 55, 128, 255, 120])
    block = content[start : start + 512]
    block[148:156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(content)


def read_with_tarfile(path):
    with tarfile.open(path) as archive:
        return {
            os.path.normpath(member.name): archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }


@pytest.mark.parametrize("seed", range(200))
def test_mutated_archives_are_refused_or_read_correctly(tmp_path, content, seed):
    rng = random.Random(seed)
    compress = COMPRESSIONS[sorted(COMPRESSIONS)[seed % 4]]
    if seed % 8 < 4:
        changed = mutate(compress(content), rng)
    else:
        changed = compress(mutate_header(content, rng))
    path = tmp_path / "some.tar"
    path.write_bytes(changed)
    result = measure_extraction(path, tmp_path / "out")
    assert bool(result["damage"]) == bool(result["error"]) != result["is_extracted"]
    if result["is_extracted"]:
        assert files_in(tmp_path / "out") == read_with_tarfile(path)


CALLS = "openat,write,mkdir,rename,unlink,unlinkat,rmdir"
_EXTRACT = """
import sys
from etils import epath
from deeplab_tf.files.archives import extract
extract(epath.Path(sys.argv[1]), epath.Path(sys.argv[2]))
"""
# TensorFlow takes seconds to load, and is not needed for HTTP downloads.
_FETCH = """
import sys, types
errors = types.SimpleNamespace(OpError=OSError)
io = types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open))
sys.modules["tensorflow"] = types.SimpleNamespace(errors=errors, io=io)
from deeplab_tf.checkpoints.download import fetch
fetch(sys.argv[1], sys.argv[2])
"""


def run_traced(folder, script, arguments, *options):
    """Runs a script with strace; returns its exit status and the traced calls."""
    trace = folder.parent / "trace"
    strace = ["strace", "-f", "-o", trace, *options]
    command = [*strace, sys.executable, "-B", "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=120)
    return ended.returncode, trace.read_text().splitlines()


def find_writing_calls(folder, script, arguments):
    """Returns the name and number of each call that changes files."""
    status, lines = run_traced(folder, script, arguments, "-e", f"trace={CALLS}")
    assert status == 0
    process, calls, counts = lines[0].split()[0], [], {}
    for line in (line.split(None, 1)[1] for line in lines if line.startswith(process)):
        call = line.partition("(")[0]
        counts[call] = counts.get(call, 0) + 1
        is_ours = str(folder) in line and ("O_CREAT" in line or call != "openat")
        is_relative = call == "unlinkat" or line.startswith("write(")
        if is_ours or (is_relative and not line.startswith("write(2,")):
            calls.append((call, counts[call]))
    return calls


def kill_at_every_call(make, script, arguments, check):
    """Kills a script at each call that changes files, then runs it again.

    Args:
        make: Creates and returns the initial folder.
        script: The script.
        arguments: Its arguments.
        check: Checks the folder; takes whether the script has completed.
    """
    folder = make()
    calls = find_writing_calls(folder, script, arguments)
    check(True)
    for call, number in calls:
        make()
        inject = f"inject={call}:signal=KILL:when={number}"
        status, _ = run_traced(folder, script, arguments, "-e", inject)
        assert status != 0, (call, number)
        check(False)
        assert run_traced(folder, script, arguments, "-e", "trace=none")[0] == 0
        check(True)
    print(f"killed at {len(calls)} calls: {[call for call, _ in calls]}")
    return len(calls)


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
OLD = {"top/a.txt": b"old", "top/b/c.txt": b"see"}
NEW = {"top/a.txt": b"new", "top/b/d.txt": bytes(200_000)}


@needs_strace
@pytest.mark.parametrize("before", ["nothing", "ours", "changed"])
def test_extraction_killed_at_any_call_is_atomic(tmp_path, before):
    work, archive = tmp_path / "work", tmp_path / "some.tar"
    out = work / "out"

    def make():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if before != "nothing":
            official_archives.write_tar(archive, OLD)
            archives.extract(epath.Path(archive), epath.Path(out))
        if before == "changed":
            (out / "top/a.txt").write_bytes(b"mine")
        official_archives.write_tar(archive, NEW)
        return work

    def check(is_complete):
        state = files_in(out)
        mine = OLD | {"top/a.txt": b"mine"}
        old = {"nothing": {}, "ours": OLD, "changed": mine}[before]
        # It is missing for a moment between two renames.
        assert state == NEW or (not is_complete and state in (old, {}))
        backups = [path for path in work.iterdir() if ".replaced." in path.name]
        if is_complete:
            assert sorted(work.iterdir()) == sorted([out, *backups])
        if before == "changed" and (is_complete or state != old):
            assert [files_in(path) for path in backups] == [mine]

    assert kill_at_every_call(make, _EXTRACT, [archive, out], check) >= 8


class Handler(loopback.QuietHandler, http.server.BaseHTTPRequestHandler):
    """Serves DOWNLOAD, or the requested rest of it."""

    def do_GET(self):
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        size = len(DOWNLOAD)
        if start >= size:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        self.wfile.write(DOWNLOAD[start:])


DOWNLOAD = hostile_tars.noise(1_000_000)


@needs_strace
@pytest.mark.parametrize("before", ["nothing", "partial file"])
def test_download_killed_at_any_call_resumes(tmp_path, before):
    cache, name = tmp_path / "cache", "some.tar"
    digest = hashlib.sha256(DOWNLOAD).hexdigest()

    def make():
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(0o700)
        if before == "partial file":
            (cache / f"{name}.part").write_bytes(DOWNLOAD[:300_000])
            origin = f'{url}\n"one"\n{len(DOWNLOAD)}\n'
            (cache / f"{name}.part.from").write_text(origin)
        return cache

    def check(is_complete):
        archive, record = cache / name, cache / f"{name}.sha256"
        assert is_complete is False or archive.exists()
        assert not archive.exists() or archive.read_bytes() == DOWNLOAD
        assert not record.exists() or record.read_text() == f"{digest}  {name}\n"
        if is_complete:
            assert record.exists()
            names = {path.name for path in cache.iterdir() if path.suffix != ".lock"}
            assert names - {f"{name}.part.from"} == {name, record.name}

    with loopback.serve(Handler) as server:
        url = f"{server.url}/{name}"
        assert kill_at_every_call(make, _FETCH, [url, cache], check) >= 6
