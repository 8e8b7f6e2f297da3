"""Data, training and evaluation, and all of it as one experiment.json."""

import dataclasses

from deeplab_tf import strict_json
from deeplab_tf.config.checks import freeze_lists, require
from deeplab_tf.config.model import ModelConfig
from deeplab_tf.data.info import DatasetInfo

# Its name beside the checkpoints of a training.
EXPERIMENT_FILE = "experiment.json"
# Keys that an experiment.json has in any case, by which a gap in it is noticed.
_REQUIRED = ("format_version", "model")


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
    crop_size: tuple[int, int] = (513, 513)
    batch_size: int = 8
    min_resize_value: int | None = None
    max_resize_value: int | None = None
    resize_factor: int | None = None
    min_scale_factor: float = 0.5
    max_scale_factor: float = 2.0
    scale_factor_step_size: float = 0.25
    mean_pixel: tuple[float, ...] = ModelConfig().mean_pixel
    photometric_jitter: float = 0.0
    bootstrap_classes: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        freeze_lists(self)
        require(
            min(self.crop_size) > 0,
            f"crop size must be positive; received {self.crop_size}",
        )
        require(
            self.batch_size > 0,
            f"batch size must be positive; received {self.batch_size}",
        )
        require(
            0 < self.min_scale_factor <= self.max_scale_factor,
            "min_scale_factor must be positive and at most max_scale_factor; "
            f"received {self.min_scale_factor} and {self.max_scale_factor}",
        )
        require(
            self.scale_factor_step_size >= 0,
            f"scale_factor_step_size must not be negative; received "
            f"{self.scale_factor_step_size}",
        )
        require(
            0 <= self.seed < 2**32,
            f"seed must be at least 0 and below 2^32; received {self.seed}",
        )
        require(
            0 <= self.photometric_jitter <= 1,
            f"photometric_jitter is a share in 0..1; received "
            f"{self.photometric_jitter}",
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

    training_number_of_steps: int = 30000
    optimizer: str = "momentum"
    learning_policy: str = "poly"
    base_learning_rate: float = 1e-4
    end_learning_rate: float = 0.0
    learning_power: float = 0.9
    decay_steps: int = 0
    learning_rate_decay_factor: float = 0.1
    learning_rate_decay_step: int = 2000
    slow_start_step: int = 0
    slow_start_learning_rate: float = 1e-4
    momentum: float = 0.9
    adam_learning_rate: float = 1e-3
    adam_epsilon: float = 1e-8
    weight_decay: float = 4e-5
    last_layer_gradient_multiplier: float = 1.0
    last_layers_contain_logits_only: bool = False
    fine_tune_batch_norm: bool = True
    upsample_logits: bool = True
    hard_example_mining_step: int = 0
    top_k_percent_pixels: float = 1.0
    label_weights: tuple[float, ...] = ()
    ignore_label: int = 255
    initialize_last_layer: bool = True
    tf_initial_checkpoint: str | None = None
    train_logdir: str | None = None
    log_steps: int = 10
    save_interval_secs: float = 1200.0
    save_interval_steps: int = 0
    focal_gamma: float = 0.0
    batch_norm: str = "auto"
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    recompute: bool = False
    jit: str = "auto"
    steps_per_call: int = 0
    eval_interval_steps: int = 0
    early_stop_evals: int = 0

    def __post_init__(self) -> None:
        freeze_lists(self)
        require(
            self.training_number_of_steps > 0,
            "training_number_of_steps must be positive; received "
            f"{self.training_number_of_steps}",
        )
        for name, choices in (
            ("optimizer", ("momentum", "nesterov", "adam", "adamw")),
            ("learning_policy", ("poly", "step")),
            ("batch_norm", ("auto", "train", "sync", "freeze")),
            ("jit", ("auto", "on", "off")),
        ):
            value = getattr(self, name)
            require(
                value in choices,
                f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}; "
                f"received {value!r}",
            )
        require(
            0 < self.top_k_percent_pixels <= 1,
            "top_k_percent_pixels is a share in (0, 1]; received "
            f"{self.top_k_percent_pixels}",
        )
        require(
            0 <= self.ema_decay < 1,
            f"ema_decay must be in [0, 1); received {self.ema_decay}",
        )
        for name, least in (
            ("log_steps", 1),
            ("accumulate_steps", 1),
            ("steps_per_call", 0),
            ("save_interval_steps", 0),
            ("eval_interval_steps", 0),
            ("early_stop_evals", 0),
            ("focal_gamma", 0),
        ):
            value = getattr(self, name)
            require(
                value >= least, f"{name} must be at least {least}; received {value}"
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

    eval_scales: tuple[float, ...] = (1.0,)
    add_flipped_images: bool = False
    eval_crop_size: tuple[int, int] | None = None
    eval_batch_size: int = 1
    ignore_label: int = 255
    window_size: tuple[int, int] | None = None
    memory_limit_mb: int | None = None

    def __post_init__(self) -> None:
        freeze_lists(self)
        require(
            bool(self.eval_scales) and min(self.eval_scales) > 0,
            f"scales must be positive, and one at least; received {self.eval_scales}",
        )
        require(
            min(self.eval_crop_size or (1,)) > 0,
            f"eval_crop_size must be positive; received {self.eval_crop_size}",
        )
        require(
            min(self.window_size or (1,)) > 0,
            f"window_size must be positive; received {self.window_size}",
        )
        require(
            self.window_size is None or self.memory_limit_mb is None,
            "window_size and memory_limit_mb exclude each other",
        )
        for name in ("eval_batch_size", "memory_limit_mb"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"{name} must be at least 1; received {value}",
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
