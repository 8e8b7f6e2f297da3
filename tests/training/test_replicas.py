"""Replicas in a single process; test_distribution.py runs several processes."""

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.training.distribution import Worker
from deeplab_tf.training.replicas import Replicas


def test_variables_are_copied_from_chief(monkeypatch):
    replicas = Replicas(tf.distribute.get_strategy())
    replicas.worker = Worker(1, 2)
    sent = []

    def add_values_of_chief(values):
        sent.append(values)
        return values + np.arange(10, dtype=np.float32)

    monkeypatch.setattr(replicas, "sum_over_workers", add_values_of_chief)
    variables = [keras.Variable(np.ones(s, np.float32)) for s in ((2, 3), (4,))]
    replicas.copy_from_chief(variables)
    np.testing.assert_array_equal(variables[0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(variables[1], [6, 7, 8, 9])
    assert not np.any(sent)  # only the chief sends its values


def test_single_worker_exchanges_nothing():
    replicas = Replicas(tf.distribute.get_strategy())
    assert replicas.any_worker(True, False) == [True, False]
    assert replicas.sum_over_workers([1, 2]).tolist() == [1, 2]
    replicas.require_same_start(0, 0, [], None)
