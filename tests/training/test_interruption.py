"""Signals that end a program: recorded, raised or ignored."""

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
def _restored_handlers():
    before = {number: signal.getsignal(number) for number in STATUSES}
    yield
    after = {number: signal.getsignal(number) for number in STATUSES}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def ignore_signal():
    """A function that ignores a signal during the test."""
    before = {}

    def ignore(number):
        before[number] = signal.signal(number, signal.SIG_IGN)

    yield ignore
    for number, handler in before.items():
        assert signal.signal(number, handler) == signal.SIG_IGN


@pytest.mark.parametrize("number", STATUSES)
def test_first_signal_is_recorded_and_restores_default_handlers(number):
    with Interruption() as interruption:
        assert interruption.signal is None
        os.kill(os.getpid(), number)
        assert (interruption.signal, interruption.exit_status) == (
            number,
            STATUSES[number],
        )
        for each in STATUSES:
            assert signal.getsignal(each) == signal.SIG_DFL


def test_exit_status_defaults_to_sigterm():
    with Interruption() as interruption:
        assert interruption.exit_status == 143


@pytest.mark.parametrize("number", STATUSES)
def test_first_signal_raises_interrupted_and_cleanup_runs(number):
    cleaned = []
    with pytest.raises(Interrupted) as error, raise_on_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(signal.getsignal(number))
    assert cleaned == [signal.SIG_DFL]
    assert (error.value.code, error.value.signal) == (STATUSES[number], number)


def test_recorded_signal_does_not_raise():
    with raise_on_signals(), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM


def test_sighup_stays_ignored_under_nohup(ignore_signal):
    ignore_signal(signal.SIGHUP)
    with raise_on_signals(), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM


def test_ignored_sigint_is_recorded_only_during_training(ignore_signal):
    # As for background jobs of a script.
    ignore_signal(signal.SIGINT)
    with raise_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.signal == signal.SIGINT
