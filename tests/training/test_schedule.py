"""The schedule: calls end at saves, evaluations and the last step."""

import pytest

from deeplab_tf import TrainConfig
from deeplab_tf.training.schedule import Schedule

CONFIG = TrainConfig(
    training_number_of_steps=100,
    save_interval_steps=30,
    save_interval_secs=600,
    eval_interval_steps=45,
)


@pytest.mark.parametrize(
    ("step", "count", "is_save_due", "is_evaluation_due"),
    [
        (0, 10, True, False),  # a multiple of all intervals, but not evaluated
        (25, 5, False, False),
        (30, 10, True, False),
        (44, 1, False, False),
        (45, 10, True, True),  # each evaluated step is saved
        (97, 3, False, False),
        (100, 0, True, True),
    ],
)
def test_saves_and_evaluations_due_after_a_step(
    step, count, is_save_due, is_evaluation_due
):
    schedule = Schedule(CONFIG, 10)
    assert schedule.count_steps(step) == count
    assert schedule.is_save_due(step, 0.0) == is_save_due
    assert schedule.is_evaluation_due(step) == is_evaluation_due


def test_save_is_due_after_save_interval_secs():
    schedule = Schedule(CONFIG, 10)
    assert [schedule.is_save_due(1, secs) for secs in (600.0, 600.1)] == [False, True]
