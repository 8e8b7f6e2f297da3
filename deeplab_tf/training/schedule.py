"""When to save and evaluate, and how many steps to run per host call."""

import dataclasses

from deeplab_tf.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Decides what is due after a step."""

    config: TrainConfig
    steps_per_call: int

    def count_steps(self, step: int) -> int:
        """Returns the number of steps to run at once, until something is due."""
        config, steps = self.config, self.steps_per_call
        for every in (config.save_interval_steps, config.eval_interval_steps):
            if every:
                steps = min(steps, every - step % every)
        return min(steps, config.training_number_of_steps - step)

    def is_evaluation_due(self, step: int) -> bool:
        """Returns whether to score the model after `step` steps."""
        every = self.config.eval_interval_steps
        is_last = step == self.config.training_number_of_steps
        return bool(every) and step > 0 and (step % every == 0 or is_last)

    def is_save_due(self, step: int, seconds: float) -> bool:
        """Returns whether to save, `seconds` after the latest checkpoint."""
        config, every = self.config, self.config.save_interval_steps
        return (
            step == config.training_number_of_steps
            or self.is_evaluation_due(step)
            or bool(every and step % every == 0)
            or seconds > config.save_interval_secs
        )
