"""Backbones that compute their activations again instead of keeping them.

Training keeps every activation for the backward pass. Here only those between
segments are kept; the rest of a segment is computed a second time when the backward
pass reaches it (Chen et al., 1604.06174): a third more time, a fraction of the memory.
"""

import itertools
from math import prod
from typing import NamedTuple

import keras
from keras import layers, ops, tree

from deeplab_tf.errors import UserError
from deeplab_tf.models.calls import Call, trace_calls

# Only the ratios of sizes matter where a model leaves its own open.
_NOMINAL_SIZE = 513
# Segments of at most this share of a model are tried, and of its powers.
_SHARE, _POWERS = 0.9, 40


def _elements(tensors) -> int:
    return sum(prod(x.shape) for x in tensors)


def _crossings(calls: list[Call], image) -> dict[int, list]:
    """Returns `{cut: tensors}`: the earlier tensors that calls after a cut use.

    The latest tensor is first. Cuts through more than two tensors are left out.
    """
    last_use = {id(x): i for i, call in enumerate(calls) for x in call.inputs}
    alive, found = {id(image): image}, {}
    for cut, call in enumerate(calls[:-1], 1):
        alive = {id(x): x for x in call.outputs} | alive
        alive = {key: x for key, x in alive.items() if last_use.get(key, 0) >= cut}
        if len(alive) <= 2:
            found[cut] = list(alive.values())
    return found


def _find_cuts_within(limit: float, totals: list[int], kept: dict[int, int]):
    """Returns the cuts that keep least; None if there are none.

    Args:
        limit: Elements that a segment may have.
        totals: Elements of all calls before each.
        kept: `{cut: elements kept there}`, in order; the last is the end.
    """
    best = {0: (0, ())}
    for cut, elements in kept.items():
        choices = [
            (least + elements, (*earlier, cut))
            for start, (least, earlier) in best.items()
            if totals[cut] - totals[start] <= limit
        ]
        if choices:
            best[cut] = min(choices)
    return best.get(len(totals) - 1, (0, None))[1]


def find_cuts(model: keras.Model) -> tuple[int, ...]:
    """Returns the number of layers after which each segment of a model ends.

    These cuts minimise the elements of the kept tensors and of the largest segment.

    Args:
        model: A functional model of one image.
    """
    shape = [size or _NOMINAL_SIZE for size in model.input.shape[1:]]
    image = keras.Input(batch_shape=(1, *shape), dtype=model.input.dtype)
    calls, _ = trace_calls(model, image)
    totals = [0, *itertools.accumulate(_elements(call.outputs) for call in calls)]
    kept = {cut: _elements(x) for cut, x in _crossings(calls, image).items()}
    kept[len(calls)] = 0
    limits = [totals[-1] * _SHARE**i for i in range(_POWERS)]
    found = filter(None, (_find_cuts_within(limit, totals, kept) for limit in limits))

    def cost(choice):
        ends = itertools.pairwise((0, *choice))
        largest = max(totals[end] - totals[start] for start, end in ends)
        return largest + sum(kept[cut] for cut in choice)

    return min(found, key=cost)


class _Segment(NamedTuple):
    """A part of a model, which shares the model's layers.

    Attributes:
        network: The part.
        takes: Keys of its input tensors.
        gives: Keys of its output tensors.
    """

    network: keras.Model
    takes: list[int]
    gives: list[int]


def _segments(model: keras.Model) -> tuple[list[_Segment], list[int]]:
    """Returns the segments of a model and the keys of its outputs.

    The image's key is 0.
    """
    image = keras.Input(batch_shape=model.input.shape, dtype=model.input.dtype)
    calls, outputs = trace_calls(model, image)
    crossings = _crossings(calls, image)
    keys = {id(x): i for i, call in enumerate(calls, 1) for x in call.outputs}
    keys[id(image)] = 0
    segments, taken = [], [image]
    for start, end in itertools.pairwise((0, *find_cuts(model))):
        made = {id(x) for call in calls[start:end] for x in call.outputs}
        crossing = crossings.get(end, [])
        # Without duplicates. The gradient of the first output starts the second
        # computation, so it has to be the one that is computed last.
        given = {id(x): x for x in (*crossing, *outputs) if id(x) in made}
        network = keras.Model(taken, list(given.values()))
        segments.append(
            _Segment(network, [keys[id(x)] for x in taken], [keys[i] for i in given])
        )
        taken = crossing
    return segments, [keys[id(x)] for x in outputs]


def _call_and_recompute(network: keras.Model, inputs: list, training) -> list:
    """Calls a network of which the backward pass keeps the inputs alone.

    `keras.remat` calls it twice, but variables must change once: so it is made a
    function of their values, which also returns the new ones.
    """
    learned = network.trainable_variables
    state = network.non_trainable_variables
    # Copies: a variable of TensorFlow would be read again after it has changed.
    learned_values = [ops.copy(v.value) for v in learned]
    state_values = [ops.copy(v.value) for v in state]
    changed = []

    def function(*tensors):
        values = [*tensors[len(inputs) :], *state_values]
        mapping = list(zip([*learned, *state], values, strict=True))
        # Variables of other models that wait for their values are left alone.
        with keras.StatelessScope(mapping, initialize_variables=False) as scope:
            before = [scope.get_current_value(v) for v in state]
            outputs = network(list(tensors[: len(inputs)]), training=training)
            after = [scope.get_current_value(v) for v in state]
        pairs = zip(state, before, after, strict=True)
        changes = [(v, new) for v, old, new in pairs if new is not old]
        changed[:] = [v for v, _ in changes]
        return [*tree.flatten(outputs), *(ops.stop_gradient(x) for _, x in changes)]

    results = keras.remat(function)(*inputs, *learned_values)
    count = len(results) - len(changed)
    for variable, value in zip(changed, results[count:], strict=True):
        variable.assign(value)
    return results[:count]


class RecomputedModel(layers.Layer):
    """Calls a functional model in segments, keeping only what is between them.

    Args:
        model: A functional model of one image; its variables are shared.
    """

    def __init__(self, model: keras.Model, **kwargs):
        # Its own variables and inputs are never cast; the model's layers do that.
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.model = model
        self._segments, self._outputs = _segments(model)

    def call(self, image, training=None, mask=None):
        """Returns the outputs of the model, as a list; `mask` as Keras hands it on."""
        tensors = {0: image}
        for segment in self._segments:
            inputs = [tensors[key] for key in segment.takes]
            outputs = _call_and_recompute(segment.network, inputs, training)
            tensors |= zip(segment.gives, outputs, strict=True)
        return [tensors[key] for key in self._outputs]

    def compute_output_spec(self, image, training=None, mask=None):
        """Returns the symbolic outputs of the model."""
        return self.model.compute_output_spec(image)


def _is_backbone(layer) -> bool:
    return isinstance(layer, keras.Model) and layer.name == "backbone"


def _has_backbone(layer) -> bool:
    if not isinstance(layer, keras.Model):
        return False
    return _is_backbone(layer) or any(map(_has_backbone, layer.layers))


def recompute_backbone(model: keras.Model) -> keras.Model:
    """Returns a model that keeps few activations of its backbone while training.

    It shares every variable, gives the same outputs and gradients, and takes about
    a third more time. Heads are left as they are.

    Args:
        model: A model of `build_model`, or one of its inputs and an inner output
            such as "logits".

    Raises:
        UserError: if the model has no nested model named "backbone".
    """
    if not _has_backbone(model):
        raise UserError(
            "recomputation needs a model of build_model, whose backbone is a nested "
            f'model named "backbone"; received {model.name!r} without one'
        )

    def replace(layer):
        if _is_backbone(layer):
            return RecomputedModel(layer, name=layer.name)
        return recompute_backbone(layer) if _has_backbone(layer) else layer

    return keras.models.clone_model(model, clone_function=replace)
