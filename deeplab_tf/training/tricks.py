"""Experimental losses."""

import keras
import tensorflow as tf
from keras import ops

from deeplab_tf.data.info import is_scored
from deeplab_tf.models.resampling import resize_bilinear, spatial_size, align_size


def one_hot_valid(labels, classes, ignore_label):
    known = is_scored(labels, classes, ignore_label)
    hot = ops.one_hot(ops.where(known, labels, 0), classes, dtype="float32")
    return hot * ops.cast(known, "float32")[..., None], known


def relaxed_losses(labels, logits, ignore_label, class_weights, radius):
    hot, known = one_hot_valid(labels, logits.shape[-1], ignore_label)
    near = ops.max_pool(hot, 2 * radius + 1, 1, "same")
    loss = ops.logsumexp(logits, -1) - ops.logsumexp(
        logits + (near - 1.0) * 1e4, -1
    )
    if len(class_weights):
        w = ops.convert_to_tensor(class_weights, dtype="float32")
        loss = loss * ops.sum(hot * w, -1)
    return ops.where(known, loss, 0.0)


def lovasz(labels, logits, ignore_label, bins=1024):
    classes = logits.shape[-1]
    hot, known = one_hot_valid(labels, classes, ignore_label)
    p = ops.softmax(logits)
    hot = ops.reshape(hot, (-1, classes))
    p = ops.reshape(p, (-1, classes))
    valid = ops.cast(ops.reshape(known, (-1, 1)), "float32")
    errors = ops.abs(hot - p) * valid
    fixed = ops.stop_gradient(errors)
    index = bins - 1 - ops.minimum(ops.cast(fixed * bins, "int32"), bins - 1)
    index = index + ops.arange(classes) * bins
    flat = ops.reshape(index, (-1,))
    def count(x):
        x = tf.math.unsorted_segment_sum(ops.reshape(x, (-1,)), flat, bins * classes)
        return ops.reshape(x, (classes, bins))
    fg, bg = count(hot * valid), count((1 - hot) * valid)
    P = ops.sum(fg, 1, keepdims=True)
    F, B = ops.cumsum(fg, 1), ops.cumsum(bg, 1)
    J = 1.0 - (P - F) / ops.maximum(P + B, 1.0)
    delta = J - ops.pad(J[:, :-1], ((0, 0), (1, 0)))
    weight = delta / ops.maximum(fg + bg, 1.0)
    per = ops.reshape(ops.take(ops.reshape(weight, (-1,)), flat), ops.shape(errors))
    per_class = ops.sum(errors * ops.stop_gradient(per), 0)
    present = ops.cast(P[:, 0] > 0, "float32")
    return ops.sum(per_class * present) / ops.maximum(ops.sum(present), 1.0)


def dice(labels, logits, ignore_label):
    classes = logits.shape[-1]
    hot, known = one_hot_valid(labels, classes, ignore_label)
    p = ops.softmax(logits) * ops.cast(known, "float32")[..., None]
    both = ops.sum(p * hot, (0, 1, 2))
    size = ops.sum(hot, (0, 1, 2))
    score = 2 * both / ops.maximum(ops.sum(p, (0, 1, 2)) + size, 1.0)
    present = ops.cast(size > 0, "float32")
    return ops.sum((1 - score) * present) / ops.maximum(ops.sum(present), 1.0)


def rmi(labels, logits, ignore_label, stride=4, radius=3):
    classes = logits.shape[-1]
    hot, known = one_hot_valid(labels, classes, ignore_label)
    p = ops.sigmoid(logits) * ops.cast(known, "float32")[..., None] + 1e-6
    hot, p = (ops.average_pool(x, stride, stride, "same") for x in (hot, p))

    def regions(x):
        h, w = x.shape[1] - radius + 1, x.shape[2] - radius + 1
        parts = [
            ops.reshape(x[:, i : i + h, j : j + w], (-1, h * w, classes))
            for i in range(radius)
            for j in range(radius)
        ]
        x = ops.transpose(ops.stack(parts, 1), (0, 3, 1, 2))  # b, c, 9, n
        x = ops.cast(x, "float64")
        return x - ops.mean(x, 3, keepdims=True)

    y, x = regions(hot), regions(p)
    n = radius * radius
    eye = ops.eye(n, dtype="float64") * 5e-4
    T = lambda m: ops.transpose(m, (0, 1, 3, 2))
    yy, xx, yx = y @ T(y), x @ T(x), y @ T(x)
    inner = tf.linalg.cholesky(xx + eye)
    solved = tf.linalg.cholesky_solve(inner, T(yx))
    left = yy - yx @ solved
    chol = tf.linalg.cholesky(left + eye)
    logdet = ops.sum(ops.log(tf.linalg.diag_part(chol) + 1e-8), -1)  # half of log det
    return ops.cast(ops.sum(ops.mean(logdet, 0)) / n, "float32") / classes


def extra_losses(labels, logits, config):
    total = 0.0
    args = (labels, logits, config.ignore_label)
    for weight, fn in (
        (config.lovasz_weight, lovasz),
        (config.dice_weight, dice),
        (config.rmi_weight, rmi),
    ):
        if weight:
            total += weight * fn(*args)
    return total


class Teacher:
    def __init__(self, model, config):
        from deeplab_tf.checkpoints import tf1
        from deeplab_tf.models.deeplab import build_model

        self.model = build_model(model.model_config)
        print(tf1.load_tf1_checkpoint(self.model, config.teacher))
        self.model.trainable = False
        self.scales = config.teacher_scales
        self.net = keras.Model(
            self.model.input, self.model.get_layer("logits").output
        )

    def __call__(self, images, logits, labels, ignore_label):
        size = tuple(logits.shape[1:3])
        total = 0.0
        for scale in self.scales:
            for flip in (False, True):
                h, w = (align_size(int(s * scale), 16) for s in images.shape[1:3])
                x = resize_bilinear(images, (h, w))
                if flip:
                    x = x[:, :, ::-1]
                y = self.net(x, training=False)
                if flip:
                    y = y[:, :, ::-1]
                total += ops.softmax(resize_bilinear(y, size))
        soft = tf.stop_gradient(total / (2 * len(self.scales)))
        # padding has no soft label
        from deeplab_tf.training.losses import shrink_labels
        known = ops.cast(shrink_labels(labels, size) != ignore_label, "float32")
        loss = -ops.sum(soft * ops.log_softmax(logits), -1)
        return ops.sum(loss * known) / ops.maximum(ops.sum(known), 1.0)


class LayerwiseAdamW(keras.optimizers.AdamW):
    def __init__(self, backbone_lr, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._backbone_lr = backbone_lr
        self._factors = {}

    def set_names(self, trained):
        for name, v in trained.items():
            head = not name.startswith("MobilenetV2/")
            self._factors[id(v.value)] = 1.0 if head else self._backbone_lr
            self._factors[id(v)] = self._factors[id(v.value)]

    def update_step(self, gradient, variable, learning_rate):
        f = self._factors[id(variable)]
        super().update_step(gradient, variable, learning_rate * f)
