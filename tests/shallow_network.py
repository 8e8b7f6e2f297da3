"""A MobileNetV2 with one block per stride, for tests that work with any network.

Other networks can be made narrow.

As a program, it runs one of the root scripts with this network:
`python tests/shallow_network.py eval.py --checkpoint_dir=...`.
"""

import contextlib
import functools
import pathlib
import runpy
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def patch_mobilenet_v2(patch):
    """Reduces `mobilenet_v2` to 5 of its 17 blocks.

    Args:
        patch: A `pytest.MonkeyPatch`, which restores it.
    """
    from deeplab_tf import config
    from deeplab_tf.config.backbones.mobilenet import Block
    from deeplab_tf.models.backbones import BACKBONES

    network = config.BACKBONES["mobilenet_v2"].network._replace(
        blocks=(
            *(Block(1, 16), Block(6, 24, 2), Block(6, 32, 2)),
            *(Block(6, 64, 2), Block(6, 160, 2)),
        ),
        low_level_blocks={4: 1, 8: 2, 16: 3},
    )
    shallow = functools.partial(BACKBONES["mobilenet_v2"], network=network)
    patch.setitem(BACKBONES, "mobilenet_v2", shallow)


def narrow_network(backbone):
    """Returns a narrower and shallower network with the same strides and rates.

    MobileNets use their depth multiplier instead.
    """
    from deeplab_tf import config
    from deeplab_tf.config.backbones.resnet import ResNet
    from deeplab_tf.config.backbones.xception import Xception

    network = config.BACKBONES[backbone].network
    if isinstance(network, ResNet):
        units = (2, 2, 2, network.units[-1])
        return network._replace(units=units, depths=(4, 8, 16, 32))
    if isinstance(network, Xception):
        blocks = [
            block._replace(
                depths=tuple(depth // 16 for depth in block.depths),
                units=min(block.units, 2),
            )
            for block in network.blocks
        ]
        return network._replace(blocks=blocks)
    return network


@contextlib.contextmanager
def shallow_mobilenet_v2():
    """Keeps `mobilenet_v2` shallow for the duration of a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch_mobilenet_v2(patch)
        yield


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    del sys.argv[0]
    from deeplab_tf.programs import start_tensorflow

    start_tensorflow()
    with shallow_mobilenet_v2():
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
