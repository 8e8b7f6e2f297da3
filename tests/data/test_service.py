"""Batches from a tf.data service arrive intact and in order, or an error says why."""

import dataclasses
import http.server
import itertools

import numpy as np
import pytest
import tensorflow as tf
from loopback import QuietHandler, find_free_ports, serve
from program_runs import assert_refused

from deeplab_tf.config import DataConfig
from deeplab_tf.data import service
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.reader import iterate_batches
from deeplab_tf.errors import UserError


class QuietRequests(QuietHandler, http.server.BaseHTTPRequestHandler):
    """A server that is not a dispatcher."""


@pytest.fixture
def dispatcher():
    """The address of a dispatcher."""
    [port] = find_free_ports(1)
    server = service.start_dispatcher(port)
    yield f"grpc://localhost:{port}"
    del server


def start_workers(dispatcher, count):
    return [
        service.start_worker(dispatcher, f"localhost:{port}")
        for port in find_free_ports(count)
    ]


def hash_number(number):
    """Returns a batch that depends on its number alone."""
    return tf.random.stateless_uniform([2, 3], [7, number]), tf.fill([2, 1], number)


def test_batches_arrive_in_order_while_workers_start_and_stop(dispatcher):
    workers = start_workers(dispatcher, 2)
    batches = iterate_batches(service.make_batches(hash_number, dispatcher))
    for number, (images, labels) in enumerate(itertools.islice(batches, 200)):
        if number == 50:
            workers.pop()
        if number == 100:
            workers += start_workers(dispatcher, 1)
            del workers[0]
        assert (labels.numpy() == number).all()
        expected = hash_number(tf.constant(number, tf.int64))[0]
        assert np.array_equal(images, expected)


def test_lost_and_repeated_batches_do_not_change_the_sequence():
    made, version = [], service.describe_version().encode()

    def make(number):
        made.append(int(number))
        return hash_number(number)

    def deliver(number, process):
        batch = [part.numpy() for part in hash_number(tf.constant(number, tf.int64))]
        return service.Delivery(
            np.int64(number), True, b"localhost:1", version, process, tuple(batch)
        )

    # The second worker dies before it delivers 5, 9 and 12. The first delivers out of
    # order, and 20 to 29 twice.
    second = [2, 3]
    first = [n for n in range(120) if n not in (*second, 5, 9, 12)]
    first = [n ^ 1 for n in first if n ^ 1 in first] + first[20:30] + [8, 4, 13]
    order = [(n, b"first") for n in sorted(first, key=lambda n: n // 4 * 4 - n % 4)]
    order[3:3] = [(n, b"second") for n in second]
    deliveries = itertools.starmap(deliver, order)
    batches = service.BatchOrder("grpc://a:1", make).restore(deliveries)
    for number, (images, _) in enumerate(itertools.islice(batches, 80)):
        expected = hash_number(tf.constant(number, tf.int64))[0]
        assert np.array_equal(images, expected)
    # Three lost batches, and the first one of each worker, which is compared.
    assert {5, 9, 12} < set(made) and len(made) == 5


def test_training_batches_equal_those_without_service(dispatcher, tiny_records):
    workers = start_workers(dispatcher, 1)
    config = DataConfig(
        tiny_records, crop_size=(33, 41), batch_size=4, scale_factor_step_size=0
    )
    served = dataclasses.replace(config, data_service=dispatcher)
    pairs = [
        load_dataset(c, "train", True, 3, 1, 2).take(12).as_numpy_iterator()
        for c in (config, served)
    ]
    for one, other in zip(*pairs, strict=True):
        assert one[0].shape == (2, 33, 41, 3)
        assert all(map(np.array_equal, one, other))
    del workers


def error_of(batches):
    # `pytest.raises` would keep the iterator until garbage is collected, when the
    # dispatcher has stopped and releasing the iterator takes 8 s.
    try:
        list(itertools.islice(iterate_batches(batches), 30))
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return pytest.fail("no error was raised")


def test_worker_with_other_records_is_named(dispatcher):
    workers = start_workers(dispatcher, 1)

    def differ(number):
        # Another test may have set the seed, so random values could be equal.
        return (tf.timestamp() + tf.cast(number, tf.float64),)

    message = error_of(service.make_batches(differ, dispatcher))
    assert "worker localhost:" in message
    assert "made a different batch 0; it must read the same records" in message
    del workers


def test_worker_with_another_version_is_named(dispatcher, monkeypatch):
    workers = start_workers(dispatcher, 1)
    monkeypatch.setattr(service, "describe_version", lambda: "deeplab_tf 99")
    message = error_of(service.make_batches(hash_number, dispatcher))
    assert "worker localhost:" in message
    assert "runs deeplab_tf 0.1.0, TensorFlow 2." in message
    assert "but the trainer runs deeplab_tf 99" in message
    del workers


def test_broken_record_is_named(dispatcher):
    workers = start_workers(dispatcher, 1)

    def fail(number):
        failed = tf.raw_ops.Assert(condition=number < 3, data=["record", number])
        with tf.control_dependencies([failed]):
            return (tf.identity(number),)

    batches = iter(service.make_batches(fail, dispatcher))
    assert [int(next(batches)[0]) for _ in range(3)] == [0, 1, 2]
    message = error_of(service.make_batches(fail, dispatcher))
    assert "record 3" in message
    del workers


def test_service_without_workers_times_out(dispatcher, monkeypatch):
    monkeypatch.setattr(service, "TIMEOUT_SECONDS", 0.5)
    message = error_of(service.make_batches(hash_number, dispatcher))
    assert f"--data_service={dispatcher} delivered no batch in " in message
    assert f"deeplab-data-worker --dispatcher_address={dispatcher}" in message


@pytest.mark.parametrize(
    "address",
    [
        "localhost:5050",
        "grpc://localhost",
        "grpc://:5050",
        "grpc://a:99999",
        "",
        "grpc://a:b",
    ],
)
def test_invalid_addresses_are_refused(address):
    with pytest.raises(UserError, match="data_service must be grpc://HOST:PORT"):
        DataConfig(data_service=address)


def test_missing_dispatcher_is_refused_before_training(tiny_records, tmp_path):
    [port] = find_free_ports(1)
    assert_refused(
        f"cannot connect to --data_service=grpc://localhost:{port} "
        rf"\(.*refused\); start it with deeplab-data-worker --dispatcher --port={port}",
        "deeplab_tf.programs.train",
        *(f"--dataset_dir={tiny_records}", f"--train_logdir={tmp_path}/logs"),
        f"--data_service=grpc://localhost:{port}",
    )
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --dispatcher or --dispatcher_address=grpc://HOST:PORT"),
        (["--dispatcher", "--dispatcher_address=grpc://a:1"], "give either"),
        (["--dispatcher_address=a:1"], "must be grpc://HOST:PORT; received 'a:1'"),
        (
            ["--dispatcher_address=grpc://a:1", "--work_dir=b"],
            "is for the --dispatcher",
        ),
        (["--dispatcher", "--port=0"], "port"),
    ],
)
def test_contradictory_flags_are_refused(arguments, message):
    assert_refused(message, "deeplab_tf.programs.data_worker", *arguments)


def test_port_in_use_is_refused(dispatcher):
    port = dispatcher.rpartition(":")[2]
    assert_refused(
        f"cannot start a dispatcher at port {port}: ",
        "deeplab_tf.programs.data_worker",
        *("--dispatcher", f"--port={port}"),
    )


def test_memory_does_not_grow_with_replaced_workers():
    version = service.describe_version().encode()

    def make(number):
        return (tf.identity(number),)

    def deliver():
        # One worker stays. The other is replaced after every 100 batches, and its last
        # batch is lost.
        for number in range(4000):
            process = b"stays" if number % 2 else f"{number // 100}".encode()
            if number % 100 != 98:
                batch = (np.int64(number),)
                yield service.Delivery(
                    np.int64(number), True, b"localhost:1", version, process, batch
                )

    order = service.BatchOrder("grpc://a:1", make)
    batches, longest = order.restore(deliver()), 0
    for number, (found,) in enumerate(itertools.islice(batches, 3000)):
        assert found == number
        longest = max(longest, len(order._waiting))
    # Eight for each of three workers, of which one is dead, and eight more.
    assert longest <= 32


def test_restarted_worker_is_compared_again():
    version = service.describe_version().encode()

    def make(number):
        return (tf.identity(number),)

    def deliver(number, process, value):
        batch = (np.int64(value),)
        return service.Delivery(
            np.int64(number), True, b"localhost:1", version, process, batch
        )

    deliveries = iter([deliver(0, b"a", 0), deliver(1, b"b", 7)])
    batches = service.BatchOrder("grpc://a:1", make).restore(deliveries)
    assert next(batches) == (0,)
    with pytest.raises(UserError, match=r"worker localhost:1 .* different batch 1"):
        next(batches)


def test_port_of_another_server_is_refused(monkeypatch):
    monkeypatch.setattr(service, "TIMEOUT_SECONDS", 2.0)
    with serve(QuietRequests) as server:
        address = f"grpc://127.0.0.1:{server.server_port}"
        message = error_of(service.make_batches(hash_number, address))
    assert f"--data_service={address} " in message
