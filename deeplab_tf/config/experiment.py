"""Data, training and evaluation, and all of it as one experiment.json."""

import dataclasses

from deeplab_tf import strict_json
from deeplab_tf.config.checks import (
    COUNT,
    FRACTION,
    LONGEST_SIDE,
    NOT_NEGATIVE,
    POSITIVE,
    SCALES,
    Range,
    check_fields,
    require,
    setting,
)
from deeplab_tf.config.model import ModelConfig
from deeplab_tf.data.info import DatasetInfo

# Its name beside the checkpoints of a training.
EXPERIMENT_FILE = "experiment.json"
# Keys that an experiment.json has in any case, by which a gap in it is noticed.
_REQUIRED = ("format_version", "model")

# Sides of crops and windows, in pixels.
_SIDE = Range(at_least=1, at_most=LONGEST_SIDE)
# Every scale between the smallest and the largest is listed.
_SMALLEST_SCALE_STEP = 0.001


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the records are and how a sample is made of them.

    Attributes:
        dataset_dir: Folder of the TFRecord shards, or of tensorflow-datasets; "" is its
            default.
        dataset: Name of the dataset, for its classes; None reads the
            `dataset_info.json` beside the shards. `tfds:NAME` is one of
            tensorflow-datasets.
        crop_size: Height and width of a training crop, in pixels; the papers' 513x513
            for VOC and 769x769 for Cityscapes are `k * output_stride + 1`.
        batch_size: Images per batch, over all replicas.
        min_resize_value: Shorter side, in pixels, to which every image is resized
            first; None leaves it as it is.
        max_resize_value: Bound of the longer side in that resizing.
        resize_factor: Resized sides are raised to a multiple of this, plus 1.
        min_scale_factor: Smallest random scale in training; 0.5 and 2.0 are the papers'
            (DeepLabv3, Sec. 4.1).
        max_scale_factor: Largest random scale in training.
        scale_factor_step_size: Distance of the random scales; 0 is continuous.
        mean_pixel: Value of each channel, 0..255, of the padding.
        photometric_jitter: Largest relative change of brightness, contrast and
            saturation in training, 0..1; 0, as the papers, is none.
        bootstrap_classes: Images with one of these classes come twice an epoch
            (DeepLabv3, Sec. 4.3: the hard images of VOC).
        seed: Seed of the order and of the augmentation, at least 0 and below 2^32.

    Raises:
        UserError: for a value that cannot be; names the field.
    """

    dataset_dir: str = ""
    dataset: str | None = None
    crop_size: tuple[int, int] = setting((513, 513), _SIDE, flag="--train_crop_size")
    batch_size: int = setting(
        8, Range(at_least=1, at_most=10**6), flag="--train_batch_size"
    )
    min_resize_value: int | None = setting(None, _SIDE)
    max_resize_value: int | None = setting(None, _SIDE)
    resize_factor: int | None = setting(None, _SIDE)
    min_scale_factor: float = setting(0.5, SCALES)
    max_scale_factor: float = setting(2.0, SCALES)
    scale_factor_step_size: float = setting(0.25, Range(at_least=0, at_most=16))
    mean_pixel: tuple[float, ...] = setting(
        ModelConfig().mean_pixel, Range(at_least=0, at_most=255)
    )
    photometric_jitter: float = setting(0.0, Range(at_least=0, at_most=1))
    bootstrap_classes: tuple[str, ...] = ()
    seed: int = setting(0, NOT_NEGATIVE)

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.min_scale_factor <= self.max_scale_factor,
            "min_scale_factor must be at most max_scale_factor; received "
            f"{self.min_scale_factor} and {self.max_scale_factor}",
        )
        step = self.scale_factor_step_size
        require(
            step == 0 or step >= _SMALLEST_SCALE_STEP,
            f"scale_factor_step_size must be 0, which is continuous, or at least "
            f"{_SMALLEST_SCALE_STEP}; received {step}",
        )
        require(
            self.min_resize_value is not None
            or (self.max_resize_value is None and self.resize_factor is None),
            "max_resize_value and resize_factor need min_resize_value",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the fields carry the official flag names.

    Attributes:
        training_number_of_steps: Optimiser steps in all.
        optimizer: "momentum" (TF1's, as the papers), "nesterov" (its look-ahead, with
            which the papers pre-train), "adam" or "adamw". AdamW decays the kernels
            themselves instead of adding L2 to the loss.
        learning_policy: "poly" or "step"; Adam ignores it.
        base_learning_rate: Learning rate at step 0; the papers' 0.007 goes with
            batch 16 and trained batch normalisation.
        end_learning_rate: Learning rate at the end of the poly policy.
        learning_power: Exponent of the poly policy (DeepLabv3, Sec. 4.1).
        decay_steps: Length of the poly policy; 0 is all steps after slow start.
        learning_rate_decay_factor: Factor of the step policy.
        learning_rate_decay_step: Steps between two decays of the step policy.
        slow_start_step: Steps at `slow_start_learning_rate` before the policy.
        slow_start_learning_rate: Constant rate of the slow start.
        momentum: Momentum.
        adam_learning_rate: Learning rate of Adam.
        adam_epsilon: Epsilon of Adam.
        weight_decay: L2 coefficient, on convolution kernels but depthwise ones.
        last_layer_gradient_multiplier: Factor on gradients of the last layers.
        last_layers_contain_logits_only: Whether the last layers are the logits
            alone, or the whole head.
        fine_tune_batch_norm: Whether batch statistics normalise, and update the
            moving ones. False still trains gamma and beta.
        upsample_logits: Whether the loss is taken at label resolution; False
            shrinks the labels instead.
        hard_example_mining_step: Steps over which mining grows to its share.
        top_k_percent_pixels: Share (0..1] of the hardest pixels in the loss.
        label_weights: One weight per class; () weighs all alike.
        ignore_label: Label of pixels without loss.
        initialize_last_layer: Whether last layers are taken from
            `tf_initial_checkpoint`; a logits layer of another class count never
            is.
        tf_initial_checkpoint: Checkpoint to start from.
        train_logdir: Folder of checkpoints; None keeps none.
        log_steps: Steps between two reports.
        save_interval_secs: Seconds between two checkpoints.
        save_interval_steps: Steps between two checkpoints; 0 is by time only.
        focal_gamma: Exponent of the focal loss (1708.02002, Eq. 4); 0 is the
            cross-entropy.
        batch_norm: "train" normalises by the batch of each replica, "sync" by that
            of all, "freeze" by the moving statistics; "auto" is what
            `fine_tune_batch_norm` says, unless the program finds better.
        accumulate_steps: Parts of a batch whose gradients are added, one after the
            other, into one optimiser step.
        ema_decay: Decay, in [0, 1), of the moving average of the weights, which
            evaluation and export then take; 0 keeps none.
        recompute: Whether the backward pass computes the backbone's activations
            anew instead of keeping them.
        jit: Whether XLA compiles the step: "on", "off" or "auto" for the platform.
        steps_per_call: Steps that the host starts at once; 0 is 1 on CPU, else 10.
        eval_interval_steps: Steps between two evaluations; 0 evaluates never.
        early_stop_evals: Evaluations without a better mIoU after which the training
            ends; 0 never ends it.

    Raises:
        UserError: for a value that cannot be; names the field and the choices.
    """

    training_number_of_steps: int = setting(30000, COUNT)
    optimizer: str = setting(
        "momentum", choices=("momentum", "nesterov", "adam", "adamw")
    )
    learning_policy: str = setting("poly", choices=("poly", "step"))
    base_learning_rate: float = setting(1e-4, NOT_NEGATIVE)
    end_learning_rate: float = setting(0.0, NOT_NEGATIVE)
    learning_power: float = setting(0.9, NOT_NEGATIVE)
    decay_steps: int = setting(0, NOT_NEGATIVE)
    learning_rate_decay_factor: float = setting(0.1, Range(above=0, at_most=1))
    learning_rate_decay_step: int = setting(2000, NOT_NEGATIVE)
    slow_start_step: int = setting(0, NOT_NEGATIVE)
    slow_start_learning_rate: float = setting(1e-4, NOT_NEGATIVE)
    momentum: float = setting(0.9, FRACTION)
    adam_learning_rate: float = setting(1e-3, NOT_NEGATIVE)
    adam_epsilon: float = setting(1e-8, POSITIVE)
    weight_decay: float = setting(4e-5, NOT_NEGATIVE)
    last_layer_gradient_multiplier: float = setting(1.0, NOT_NEGATIVE)
    last_layers_contain_logits_only: bool = False
    fine_tune_batch_norm: bool = True
    upsample_logits: bool = True
    hard_example_mining_step: int = setting(0, NOT_NEGATIVE)
    top_k_percent_pixels: float = setting(1.0, Range(above=0, at_most=1))
    label_weights: tuple[float, ...] = setting((), NOT_NEGATIVE)
    ignore_label: int = 255
    initialize_last_layer: bool = True
    tf_initial_checkpoint: str | None = None
    train_logdir: str | None = None
    log_steps: int = setting(10, COUNT)
    save_interval_secs: float = setting(1200.0, NOT_NEGATIVE)
    save_interval_steps: int = setting(0, NOT_NEGATIVE)
    focal_gamma: float = setting(0.0, NOT_NEGATIVE)
    batch_norm: str = setting("auto", choices=("auto", "train", "sync", "freeze"))
    accumulate_steps: int = setting(1, COUNT)
    ema_decay: float = setting(0.0, FRACTION)
    recompute: bool = False
    jit: str = setting("auto", choices=("auto", "on", "off"))
    steps_per_call: int = setting(0, Range(at_least=0, at_most=10**6))
    eval_interval_steps: int = setting(0, NOT_NEGATIVE)
    early_stop_evals: int = setting(0, NOT_NEGATIVE)

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


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How a model is scored; the fields carry the official flag names.

    Attributes:
        eval_scales: Scales whose probabilities are averaged; the papers use 1.0, or 0.5
            to 1.75 in steps of 0.25 (DeepLabv3, Sec. 4).
        add_flipped_images: Whether every scale is also seen mirrored.
        eval_crop_size: Height and width, in pixels, to which every image is padded, as
            the official protocol does; larger images enlarge it. None pads each
            image to the next `k * output_stride + 1`.
        eval_batch_size: Images per forward pass.
        ignore_label: Label of pixels that are not scored.
        window_size: Height and width of the windows through which larger images are
            seen; None sees every image whole.
        memory_limit_mb: Mebibytes that the inference of an image may take beside the
            model; an image that needs more is seen through windows. None is no limit.

    Raises:
        UserError: for a value or a combination that cannot be; names the field.
    """

    eval_scales: tuple[float, ...] = setting(
        (1.0,), SCALES, flag="--inference_scales of an export"
    )
    add_flipped_images: bool = False
    eval_crop_size: tuple[int, int] | None = setting(
        None, _SIDE, flag="--crop_size of an export"
    )
    eval_batch_size: int = setting(1, Range(at_least=1, at_most=10**6))
    ignore_label: int = 255
    window_size: tuple[int, int] | None = setting(None, _SIDE)
    memory_limit_mb: int | None = setting(None, COUNT)

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            bool(self.eval_scales),
            "eval_scales must hold at least one scale; received ()",
        )
        require(
            self.window_size is None or self.memory_limit_mb is None,
            "window_size and memory_limit_mb exclude each other",
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that `train.py` was told; the text of `experiment.json`.

    Attributes:
        model: What is trained.
        data: Where its samples come from.
        train: How it is trained.
        split: Split it is trained on.
        info: Classes and colours of the data; None where they are not known.
        format_version: Of the file; 1.

    Raises:
        UserError: for another `format_version`.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    split: str = "train"
    info: DatasetInfo | None = None
    format_version: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.format_version == 1,
            f"format_version {self.format_version} is of a newer deeplab_tf; "
            "this one reads 1",
        )

    def to_json(self) -> str:
        """Returns the text of `experiment.json`."""
        values = dataclasses.asdict(self)
        return strict_json.dump({key: values[key] for key in _REQUIRED} | values)

    @classmethod
    def from_json(
        cls, text: str | bytes, source: str = EXPERIMENT_FILE
    ) -> "Experiment":
        """Returns the experiment that `to_json` wrote.

        Args:
            text: Content of the file.
            source: What to call the file in an error.

        Raises:
            UserError: if the text is something else, or was changed after `to_json`
                wrote it; names `source` and the key.
        """
        experiment = strict_json.from_json(cls, text, source, _REQUIRED)
        if experiment.info is not None:
            experiment.info.check_contents(f"{source}: info.")
        return experiment
