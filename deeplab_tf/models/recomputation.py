"""Backbones that recompute activations in the backward pass to save memory.

Training usually stores all activations for the backward pass. Here, only those between
segments are stored, and each segment is recomputed when the backward pass reaches it
(Chen et al., 1604.06174). A step takes a third longer but needs a fraction of the
memory.
"""

import itertools
from math import prod
from typing import NamedTuple

import keras
from keras import layers, ops, tree

from deeplab_tf.errors import UserError
from deeplab_tf.models.calls import Call, trace_calls

# Used for unknown image sizes; only ratios matter.
_NOMINAL_SIZE = 513
# Tries segments of at most 0.9, 0.9 ** 2, ... of the model.
_SHARE, _POWERS = 0.9, 40


def _count_elements(tensors) -> int:
    return sum(prod(x.shape) for x in tensors)


def _find_live_tensors(calls: list[Call], image) -> dict[int, list]:
    """Returns `{cut: tensors}` that later calls need, latest first.

    Omits cuts that more than two tensors cross.
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
    """Finds cuts into segments of at most `limit` elements that store the fewest.

    `totals` are the cumulative elements before each call; `kept` maps cuts, in order,
    to the elements stored there; the last cut is the end.
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
    """Returns where to split a model into segments, as cumulative layer counts.

    Minimises memory: the tensors stored between segments plus those of the largest
    segment, in elements.
    """
    shape = [size or _NOMINAL_SIZE for size in model.input.shape[1:]]
    image = keras.Input(batch_shape=(1, *shape), dtype=model.input.dtype)
    calls, _ = trace_calls(model, image)
    totals = [0, *itertools.accumulate(_count_elements(call.outputs) for call in calls)]
    kept = {
        cut: _count_elements(x) for cut, x in _find_live_tensors(calls, image).items()
    }
    kept[len(calls)] = 0
    limits = [totals[-1] * _SHARE**i for i in range(_POWERS)]
    found = filter(None, (_find_cuts_within(limit, totals, kept) for limit in limits))

    def count_stored(choice):
        ends = itertools.pairwise((0, *choice))
        largest = max(totals[end] - totals[start] for start, end in ends)
        return largest + sum(kept[cut] for cut in choice)

    return min(found, key=count_stored)


class _Segment(NamedTuple):
    """A part of a model, with the keys of its input and output tensors."""

    network: keras.Model
    inputs: list[int]
    outputs: list[int]


def _split_model(model: keras.Model) -> tuple[list[_Segment], list[int]]:
    """Returns the segments of a model and the keys of its outputs.

    The key of the image is 0.
    """
    image = keras.Input(batch_shape=model.input.shape, dtype=model.input.dtype)
    calls, outputs = trace_calls(model, image)
    live_tensors = _find_live_tensors(calls, image)
    keys = {id(x): i for i, call in enumerate(calls, 1) for x in call.outputs}
    keys[id(image)] = 0
    segments, inputs = [], [image]
    for start, end in itertools.pairwise((0, *find_cuts(model))):
        computed = {id(x) for call in calls[start:end] for x in call.outputs}
        live = live_tensors.get(end, [])
        # The gradient of the first output starts the recomputation, so the first must
        # be the tensor computed last.
        results = {id(x): x for x in (*live, *outputs) if id(x) in computed}
        network = keras.Model(inputs, list(results.values()))
        segments.append(
            _Segment(network, [keys[id(x)] for x in inputs], [keys[i] for i in results])
        )
        inputs = live
    return segments, [keys[id(x)] for x in outputs]


def _call_and_recompute(network: keras.Model, inputs: list, training) -> list:
    """Calls a network whose backward pass recomputes it from the inputs.

    `keras.remat` calls the network twice, but variables must change only once. So it is
    given a function that takes their values and returns the new ones.
    """
    learned = network.trainable_variables
    state = network.non_trainable_variables
    # Copy them, because TensorFlow would otherwise read the changed variables again.
    learned_values = [ops.copy(v.value) for v in learned]
    state_values = [ops.copy(v.value) for v in state]
    changed = []

    def call_statelessly(*tensors):
        values = [*tensors[len(inputs) :], *state_values]
        mapping = list(zip([*learned, *state], values, strict=True))
        # Does not initialise pending variables of other models.
        with keras.StatelessScope(mapping, initialize_variables=False) as scope:
            before = [scope.get_current_value(v) for v in state]
            outputs = network(list(tensors[: len(inputs)]), training=training)
            after = [scope.get_current_value(v) for v in state]
        pairs = zip(state, before, after, strict=True)
        changes = [(v, new) for v, old, new in pairs if new is not old]
        changed[:] = [v for v, _ in changes]
        return [*tree.flatten(outputs), *(ops.stop_gradient(x) for _, x in changes)]

    results = keras.remat(call_statelessly)(*inputs, *learned_values)
    count = len(results) - len(changed)
    for variable, value in zip(changed, results[count:], strict=True):
        variable.assign(value)
    return results[:count]


class RecomputedModel(layers.Layer):
    """Calls a functional model in segments, storing only the tensors between them.

    It shares the variables of the model.
    """

    def __init__(self, model: keras.Model, **kwargs):
        # The layers of the model cast their inputs themselves.
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.model = model
        self._segments, self._outputs = _split_model(model)

    def call(self, image, training=None, mask=None):
        """Returns the outputs of the model, as a list; Keras passes `mask`."""
        tensors = {0: image}
        for segment in self._segments:
            inputs = [tensors[key] for key in segment.inputs]
            outputs = _call_and_recompute(segment.network, inputs, training)
            tensors |= zip(segment.outputs, outputs, strict=True)
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
    """Returns a model that recomputes the activations of its backbone in training.

    It shares all variables and has the same outputs and gradients; a step takes about a
    third longer. Heads are not recomputed. Raises `UserError` if there is no nested
    model named "backbone".
    """
    if not _has_backbone(model):
        raise UserError(
            'recomputation needs a nested model named "backbone", as in the models of '
            f"build_model(); {model.name!r} has none"
        )

    def replace(layer):
        if _is_backbone(layer):
            return RecomputedModel(layer, name=layer.name)
        return recompute_backbone(layer) if _has_backbone(layer) else layer

    return keras.models.clone_model(model, clone_function=replace)
