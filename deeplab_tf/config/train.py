"""How a model is trained."""

import dataclasses

from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.options import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    document_fields,
    option,
    ours,
)


@document_fields
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the fields carry the official flag names.

    Raises:
        UserError: for an impossible value; names the field and the choices.
    """

    training_number_of_steps: int = option(30000, COUNT, "Number of optimiser steps.")
    optimizer: str = option(
        "momentum",
        ("momentum", "nesterov", "adam", "adamw"),
        "momentum (TF1's, as the papers), nesterov (ours; its look-ahead, with "
        "which the papers pre-train), adam or adamw (ours). AdamW decays the kernels "
        "themselves instead of adding L2 to the loss.",
    )
    learning_policy: str = option(
        "poly", ("poly", "step"), "poly or step; Adam ignores it."
    )
    base_learning_rate: float = option(
        1e-4,
        NOT_NEGATIVE,
        "Learning rate at step 0; the papers' 0.007 for VOC goes with batch 16 "
        "and trained batch normalisation.",
    )
    end_learning_rate: float = option(
        0.0, NOT_NEGATIVE, "Learning rate at the end of the poly policy."
    )
    learning_power: float = option(
        0.9, NOT_NEGATIVE, "Exponent of the poly policy (DeepLabv3, Sec. 4.1)."
    )
    decay_steps: int = option(
        0, NOT_NEGATIVE, "Steps of the poly policy; 0 is all after the slow start."
    )
    learning_rate_decay_factor: float = option(
        0.1, Range(above=0, at_most=1), "Factor of each decay of the step policy."
    )
    learning_rate_decay_step: int = option(
        2000, NOT_NEGATIVE, "Steps between two decays of the step policy."
    )
    slow_start_step: int = option(
        0, NOT_NEGATIVE, "Steps at slow_start_learning_rate before the policy."
    )
    slow_start_learning_rate: float = option(
        1e-4, NOT_NEGATIVE, "Constant learning rate of the slow start."
    )
    momentum: float = option(0.9, FRACTION, "Momentum.")
    adam_learning_rate: float = option(1e-3, NOT_NEGATIVE, "Learning rate of Adam.")
    adam_epsilon: float = option(1e-8, POSITIVE, "Epsilon of Adam.")
    weight_decay: float = option(
        4e-5, NOT_NEGATIVE, "L2 of kernels, but depthwise ones; 1e-4 for ResNets."
    )
    last_layer_gradient_multiplier: float = option(
        1.0, NOT_NEGATIVE, "Factor on the gradients of the last layers."
    )
    last_layers_contain_logits_only: bool = option(
        False, help="Whether the last layers are the logits alone, or the entire head."
    )
    fine_tune_batch_norm: bool = option(
        True,
        help="Whether batch statistics normalise, and update the moving ones; false "
        "for batches under 12, which still trains gamma and beta.",
    )
    upsample_logits: bool = option(
        True, help="Whether the loss is at label resolution; false shrinks labels."
    )
    hard_example_mining_step: int = option(
        0, NOT_NEGATIVE, "Steps over which hard-pixel mining grows to its share."
    )
    top_k_percent_pixels: float = option(
        1.0, Range(above=0, at_most=1), "Share of the hardest pixels in the loss."
    )
    label_weights: tuple[float, ...] = option(
        (), NOT_NEGATIVE, "One weight per class; none weighs all alike."
    )
    ignore_label: int = option(255, help="Label of pixels without loss.", flag="")
    initialize_last_layer: bool = option(
        True,
        help="Whether last layers are taken from tf_initial_checkpoint; a logits layer "
        "of another class count never is.",
    )
    tf_initial_checkpoint: str | None = option(
        None,
        help="Weights to start from: a checkpoint, official or ours, an export, an "
        "archive or URL of one, or a name of the zoo.",
    )
    train_logdir: str | None = option(
        None, help="Folder of the checkpoints; None keeps none."
    )
    log_steps: int = option(10, COUNT, "Steps between two reports.")
    save_interval_secs: float = option(
        1200.0, NOT_NEGATIVE, "Seconds between two checkpoints."
    )
    save_interval_steps: int = ours(
        0, NOT_NEGATIVE, "Steps between two checkpoints; 0 is by time only."
    )
    focal_gamma: float = ours(
        0.0, NOT_NEGATIVE, "Exponent of the focal loss (1708.02002); 0: cross-entropy."
    )
    batch_norm: str = ours(
        "auto",
        ("auto", "train", "sync", "freeze"),
        "train normalises by the batch of each replica, sync by that of all, "
        "freeze by the moving statistics; auto is what --fine_tune_batch_norm says, "
        "unless the program finds better.",
    )
    accumulate_steps: int = ours(
        1, COUNT, "Parts of a batch whose gradients are summed into one step."
    )
    ema_decay: float = ours(
        0.0,
        FRACTION,
        "Decay, in [0, 1), of the moving average of the weights, which evaluation "
        "and export then take; 0 keeps none.",
    )
    recompute: bool = ours(
        False,
        help="Whether the backward pass computes the backbone's activations again "
        "instead of keeping them: less memory, for a third more time.",
    )
    jit: str = ours(
        "auto", ("auto", "on", "off"), "Whether XLA compiles; auto is by platform."
    )
    steps_per_call: int = ours(
        0,
        Range(at_least=0, at_most=10**6),
        "Steps that the host starts at once; 0 is 1 on CPU, else 10.",
    )
    eval_interval_steps: int = ours(
        0, NOT_NEGATIVE, "Steps between evaluations of --eval_split; 0: no evaluation."
    )
    early_stop_evals: int = ours(
        0, NOT_NEGATIVE, "Evaluations without a better mIoU that end it; 0: none."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            not self.label_weights or any(self.label_weights),
            f"label_weights must not all be 0; received {self.label_weights}",
        )
        require(
            self.learning_policy != "step" or self.learning_rate_decay_step > 0,
            "learning_rate_decay_step must be at least 1 with learning_policy=step; "
            f"received {self.learning_rate_decay_step}",
        )
        require(
            not self.early_stop_evals or self.eval_interval_steps > 0,
            f"early_stop_evals={self.early_stop_evals} needs eval_interval_steps",
        )

    @property
    def normalization(self) -> str:
        """How batch normalisation is trained: "train", "sync" or "freeze"."""
        if self.batch_norm != "auto":
            return self.batch_norm
        return "train" if self.fine_tune_batch_norm else "freeze"
