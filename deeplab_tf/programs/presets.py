r"""Lists the presets, or those that match the given words.

    python -m deeplab_tf.presets
    python -m deeplab_tf.presets camvid
    python -m deeplab_tf.presets xception_65 cityscapes

--preset=NAME of train.py, eval.py, vis.py or export.py uses one.
"""

import deeplab_tf.presets
from deeplab_tf.presets import describe
from deeplab_tf.programs.listing import run_listing


def main(argv: list[str] | None = None) -> None:
    """Prints the presets; `argv` is a command line, None is `sys.argv`."""
    run_listing(__doc__ or "", _describe_presets, argv)


def _describe_presets() -> dict[str, str]:
    presets = deeplab_tf.presets.PRESETS.items()
    return {name: describe(preset) for name, preset in presets}
