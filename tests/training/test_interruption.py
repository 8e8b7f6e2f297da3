"""Signals that ask a program to end: noted, raised, ignored, and the second one."""

import os
import signal

import pytest

from deeplab_tf.training.interruption import (
    Interrupted,
    Interruption,
    raise_on_signals,
)

STATUSES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def _handlers_are_restored():
    before = {number: signal.getsignal(number) for number in STATUSES}
    yield
    after = {number: signal.getsignal(number) for number in STATUSES}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def ignored():
    """A function that ignores a signal for the time of a test."""
    before = {}

    def ignore(number):
        before[number] = signal.signal(number, signal.SIG_IGN)

    yield ignore
    for number, handler in before.items():
        assert signal.signal(number, handler) == signal.SIG_IGN


@pytest.mark.parametrize("number", STATUSES)
def test_the_first_signal_is_noted_and_a_second_ends_the_process(number):
    with Interruption() as interruption:
        assert interruption.signal is None
        os.kill(os.getpid(), number)
        assert (interruption.signal, interruption.exit_status) == (
            number,
            STATUSES[number],
        )
        for each in STATUSES:
            assert signal.getsignal(each) == signal.SIG_DFL


def test_a_worker_without_a_signal_ends_as_by_sigterm():
    with Interruption() as interruption:
        assert interruption.exit_status == 143


@pytest.mark.parametrize("number", STATUSES)
def test_the_first_signal_is_raised_and_cleanups_run(number):
    cleaned = []
    with pytest.raises(Interrupted) as error, raise_on_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(signal.getsignal(number))
    assert cleaned == [signal.SIG_DFL]
    assert (error.value.code, error.value.signal) == (STATUSES[number], number)


def test_a_noted_signal_is_not_raised():
    with raise_on_signals(), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM


def test_under_nohup_a_hangup_stays_ignored(ignored):
    ignored(signal.SIGHUP)
    with raise_on_signals(), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM


def test_an_ignored_ctrl_c_counts_while_training_alone(ignored):
    # As in the background of a script.
    ignored(signal.SIGINT)
    with raise_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.signal == signal.SIGINT
