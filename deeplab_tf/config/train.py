"""Configuration of training."""

import dataclasses

from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.options import (
    COUNT,
    EVALUATION,
    FRACTION,
    HARDWARE,
    NOT_NEGATIVE,
    OUTPUT,
    POSITIVE,
    SCALES,
    START,
    Range,
    document_fields,
    option,
    ours,
)


@document_fields
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Configuration of training; fields have the official flag names.

    Raises:
        UserError: for an invalid value or combination; names the field and the choices.
    """

    training_number_of_steps: int = option(
        30000, COUNT, "Number of optimiser steps.", group=START
    )
    optimizer: str = option(
        "momentum",
        ("momentum", "nesterov", "adam", "adamw"),
        "momentum (that of TF1 and the papers), adam, or one of ours: nesterov, used "
        "by the papers for pre-training, or adamw, which decays the kernels directly "
        "instead of adding L2 to the loss.",
    )
    learning_policy: str = option(
        "poly",
        ("poly", "step"),
        "Learning rate schedule, poly or step. Adam ignores it.",
    )
    base_learning_rate: float = option(
        1e-4,
        NOT_NEGATIVE,
        "Initial learning rate. The papers use 0.007 for VOC, with batch size 16 and "
        "trained batch normalisation.",
        group=START,
    )
    end_learning_rate: float = option(
        0.0, NOT_NEGATIVE, "Final learning rate of the poly schedule."
    )
    learning_power: float = option(
        0.9, NOT_NEGATIVE, "Exponent of the poly schedule (DeepLabv3, Sec. 4.1)."
    )
    decay_steps: float = option(
        0.0,
        NOT_NEGATIVE,
        "Length of the poly schedule in steps; 0 means all steps after the slow start.",
    )
    learning_rate_decay_factor: float = option(
        0.1, Range(above=0, at_most=1), "Factor of each decay in the step schedule."
    )
    learning_rate_decay_step: int = option(
        2000, NOT_NEGATIVE, "Steps between decays in the step schedule."
    )
    slow_start_step: int = option(
        0, NOT_NEGATIVE, "Steps at slow_start_learning_rate before the schedule."
    )
    slow_start_learning_rate: float = option(
        1e-4, NOT_NEGATIVE, "Constant learning rate during the slow start."
    )
    momentum: float = option(0.9, FRACTION, "Momentum of the optimiser.")
    adam_learning_rate: float = option(
        1e-3, NOT_NEGATIVE, "Learning rate of Adam; AdamW uses base_learning_rate."
    )
    adam_epsilon: float = option(1e-8, POSITIVE, "Epsilon of Adam and AdamW.")
    weight_decay: float = option(
        4e-5,
        NOT_NEGATIVE,
        "L2 penalty on all but depthwise kernels. The papers use 1e-4 for ResNets.",
    )
    last_layer_gradient_multiplier: float = option(
        1.0,
        NOT_NEGATIVE,
        "Multiplier of the gradients of the last layers; with adamw, of their learning "
        "rate.",
    )
    last_layers_contain_logits_only: bool = option(
        False, help="Count only the logits as last layers, not the entire head."
    )
    fine_tune_batch_norm: bool = option(
        True,
        help="Normalise by batch statistics and update the moving ones. Turn it off "
        "for batches below 12; gamma and beta are trained either way.",
    )
    quantize_delay_step: int = option(
        -1,
        Range(at_least=-1),
        "Steps before weights and features are rounded as in 8-bit inference, to "
        "fine-tune for an int8 export; 0 rounds from the start, -1 never does.",
    )
    upsample_logits: bool = option(
        True,
        help="Compute the loss at label resolution; otherwise the labels are shrunk to "
        "the size of the logits.",
    )
    hard_example_mining_step: int = option(
        0,
        NOT_NEGATIVE,
        "Steps until hard pixel mining reaches top_k_percent_pixels, starting from all "
        "pixels.",
    )
    top_k_percent_pixels: float = option(
        1.0,
        Range(above=0, at_most=1),
        "Fraction of pixels with the highest loss to train on; 1 uses all.",
    )
    label_weights: tuple[float, ...] = option(
        (), NOT_NEGATIVE, "Loss weight of each class. Default: equal weights."
    )
    ignore_label: int = option(
        255, help="Label of pixels that the loss ignores.", flag=""
    )
    initialize_last_layer: bool = option(
        True,
        help="Also load the last layers from tf_initial_checkpoint. Logits for a "
        "different number of classes are always re-initialised.",
    )
    tf_initial_checkpoint: str | None = option(
        None,
        help="Weights to start from: a checkpoint (official or ours), an export or a "
        ".keras file, an archive or URL of one, a name from the model zoo, or a model "
        "on a hub (hf://user/repo).",
        group=START,
    )
    train_logdir: str | None = option(
        None,
        help="Folder of checkpoints and logs. None, the default in Python, saves "
        "nothing.",
        group=START,
    )
    log_steps: int = option(10, COUNT, "Steps between log lines.", group=OUTPUT)
    save_interval_secs: float = option(
        1200.0, NOT_NEGATIVE, "Seconds between checkpoints.", group=OUTPUT
    )
    save_interval_steps: int = ours(
        0,
        NOT_NEGATIVE,
        "Steps between checkpoints; 0 saves by time only.",
        group=OUTPUT,
    )
    tracker: str = ours(
        "none",
        ("none", "wandb", "mlflow"),
        "Experiment tracker that also receives the values of TensorBoard.",
        group=OUTPUT,
    )
    focal_gamma: float = ours(
        0.0, NOT_NEGATIVE, "Gamma of the focal loss (1708.02002); 0 is cross-entropy."
    )
    relaxed_border: int = ours(
        0,
        NOT_NEGATIVE,
        "Width in pixels of the border along which every class within this distance "
        "counts as correct (1812.01593); 0 turns it off.",
    )
    region_loss: str = ours(
        "none",
        ("none", "lovasz", "dice", "rmi"),
        "Loss of entire regions to add: lovasz (1705.08790), dice (1606.04797) or rmi, "
        "region mutual information (1910.12037).",
    )
    region_loss_weight: float = ours(0.5, NOT_NEGATIVE, "Weight of region_loss.")
    teacher: str | None = ours(
        None, help="Checkpoint of the same architecture that supplies soft labels."
    )
    teacher_weight: float = ours(0.5, NOT_NEGATIVE, "Weight of the teacher's loss.")
    teacher_scales: tuple[float, ...] = ours(
        (0.75, 1.0, 1.5), SCALES, "Scales at which the teacher sees a crop."
    )
    batch_norm: str = ours(
        "auto",
        ("auto", "train", "sync", "freeze"),
        "statistics of batch normalisation: train uses the batch of each replica, sync "
        "uses the batch of all replicas, and freeze uses the moving statistics. auto "
        "chooses from fine_tune_batch_norm, the batch size and the initial weights.",
    )
    accumulate_steps: int = ours(
        1,
        COUNT,
        "Split each batch into this many parts and accumulate their gradients.",
        group=HARDWARE,
    )
    ema_decay: float = ours(
        0.0,
        FRACTION,
        "Decay, in [0, 1), of the moving average of the weights, which evaluation and "
        "export then use; 0 turns it off.",
    )
    recompute: bool = ours(
        False,
        help="Recompute the backbone's activations in the backward pass instead of "
        "storing them: less memory for about a third more time.",
        group=HARDWARE,
    )
    jit: str = ours(
        "auto",
        ("auto", "on", "off"),
        "Compile with XLA: on, off, or auto to decide by platform.",
        group=HARDWARE,
    )
    steps_per_call: int = ours(
        0,
        Range(at_least=0, at_most=10**6),
        "Training steps per call of the compiled function; 0 means 1 on CPU, else 10.",
        group=HARDWARE,
    )
    eval_interval_steps: int = ours(
        0,
        NOT_NEGATIVE,
        "Steps between evaluations on eval_split; 0 never evaluates.",
        group=EVALUATION,
    )
    early_stop_evals: int = ours(
        0,
        NOT_NEGATIVE,
        "Stop after this many evaluations without a better mIoU; 0 never stops early.",
        group=EVALUATION,
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
        """Resolved policy of batch normalisation: "train", "sync" or "freeze"."""
        if self.batch_norm != "auto":
            return self.batch_norm
        return "train" if self.fine_tune_batch_norm else "freeze"
