"""Workers meet before training, or all of them report the same problem."""

import concurrent.futures
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from loopback import cluster_configs

from deeplab_tf import UserError
from deeplab_tf.training.rendezvous import Member, meet

SETTINGS = {"deeplab_tf": "0.1.0", "records": "93 of pascal_voc_seg"}


def make_members(*settings):
    addresses = cluster_configs(len(settings))[0]["cluster"]["worker"]
    return [Member(i, addresses, each) for i, each in enumerate(settings)]


def meet_all(members, limit):
    """Returns the error of each worker, or ""."""

    def run(member):
        try:
            meet(member, limit)
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(run, members))


def test_equal_workers_meet_and_leave_the_port_free():
    members = make_members(*3 * [SETTINGS])
    assert meet_all(members, limit=10) == 3 * [""]
    port = int(members[0].addresses[0].rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"deeplab_tf": "0.2.0"}, "has deeplab_tf 0.2.0, but worker 1 (127.0.0.1:"),
        ({"records": "60 of ade20k"}, "has records 60 of ade20k, but worker 1 ("),
        ({"--seed": "1"}, "has --seed 1, but worker 1 ("),
    ],
)
def test_all_workers_name_the_different_one(changed, problem):
    members = make_members(SETTINGS, SETTINGS, SETTINGS | changed)
    # The first worker decides as soon as the third one differs.
    others = threading.Thread(target=meet_all, args=(members[1:2], 1))
    others.start()
    errors = meet_all([members[0], members[2]], limit=10)
    others.join()
    assert len(set(errors)) == 1
    assert errors[0].startswith(f"worker 3 {problem}")
    assert errors[0].endswith(
        "start all workers with the same command, package and data"
    )


def test_missing_workers_are_named():
    members = make_members(*4 * [SETTINGS])
    errors = meet_all(members[:2], limit=1)
    names = ", ".join(members[0].describe(i) for i in (2, 3))
    assert set(errors) == {
        f"{names} did not connect within 1 s; start one process for each address in "
        "TF_CONFIG"
    }


def test_missing_first_worker_is_named():
    members = make_members(SETTINGS, SETTINGS)
    [error] = meet_all(members[1:], limit=0.5)
    assert error.startswith(f"{members[0].describe(0)} did not answer worker 2 (")


def test_port_in_use_is_refused():
    members = make_members(SETTINGS, SETTINGS)
    port = int(members[0].addresses[0].rpartition(":")[2])
    with socket.create_server(("", port)):
        [error] = meet_all(members[:1], limit=0.5)
    assert f"cannot listen on port {port}" in error


def test_other_clients_and_restarted_workers_are_tolerated():
    members = make_members(*3 * [SETTINGS])
    host, port = members[0].addresses[0].split(":")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet_all, members[:1], 20)
        connect = lambda: socket.create_connection((host, int(port)), 5)  # noqa: E731
        while True:
            try:
                stranger = connect()
                break
            except OSError:
                time.sleep(0.05)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with connect() as killed:
            killed.sendall(b'{"index": 1, "settings": {"records": "x"}')
        # A worker that is killed while it waits, and then restarted.
        with connect() as killed:
            message = json.dumps({"index": 1, "settings": SETTINGS})
            killed.sendall(f"{message}\n".encode())
        time.sleep(0.5)
        assert not first.done()
        assert meet_all(members[1:], 20) == ["", ""]
        assert first.result() == [""]
        stranger.close()


def test_hanging_block_exits():
    code = "import time; from deeplab_tf.training.rendezvous import exit_after\n"
    code += "with exit_after(60, 'unused'): pass\n"
    code += "with exit_after(0.2, 'worker 1 is lost'): time.sleep(60)"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "-c: worker 1 is lost\n")
