"""When a training saves and evaluates, and how many steps it does in between."""

import dataclasses

from deeplab_tf.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What is due after a step.

    Attributes:
        config: How the model is trained.
        steps_per_call: Steps that the host starts at once where nothing is due.
    """

    config: TrainConfig
    steps_per_call: int

    def count_steps(self, step: int) -> int:
        """Returns how many steps to do at once, up to what is due next."""
        config, steps = self.config, self.steps_per_call
        for every in (config.save_interval_steps, config.eval_interval_steps):
            if every:
                steps = min(steps, every - step % every)
        return min(steps, config.training_number_of_steps - step)

    def is_evaluation_due(self, step: int) -> bool:
        """Whether the model is to be scored after `step` steps."""
        every = self.config.eval_interval_steps
        is_last = step == self.config.training_number_of_steps
        return bool(every) and step > 0 and (step % every == 0 or is_last)

    def is_save_due(self, step: int, seconds: float) -> bool:
        """Whether a checkpoint is to be written, `seconds` after the latest one."""
        config, every = self.config, self.config.save_interval_steps
        return (
            step == config.training_number_of_steps
            or self.is_evaluation_due(step)
            or bool(every and step % every == 0)
            or seconds > config.save_interval_secs
        )
