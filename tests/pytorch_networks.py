"""Networks of PyTorch projects with procedural weights, and their logits.

Runs in the environment of `tools/pytorch_venv.sh`:

    python tests/pytorch_networks.py FOLDER [NAME ...]

writes `<name>.npz` for each network: logits of `image(size)` for each size, as the
project computes them, and the names and shapes of the state dict.

    --golden        networks of GOLDEN; small images, and every eighth row and column
    --weights=FILE  weights (.npz) instead of procedural ones
    --save          also writes the state dict as `<name>.pth`
    --gradients     writes the gradients of the loss of one image instead of logits
"""

import argparse
import pathlib
import sys
import types
import zlib

import numpy as np

# Sides that every network accepts; SMP's upsampling needs multiples of the stride.
ODD, EVEN = ((513, 513), (321, 513), (480, 640)), ((512, 512), (320, 512), (480, 640))
SMALL_ODD, SMALL_EVEN = ((65, 97), (64, 96)), ((64, 96), (128, 64))
STEP = 8  # of the rows and columns in golden files


def value(name: str, shape) -> np.ndarray:
    """Returns the value of a variable, derived from its name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if len(shape) == 4:
        z = z * np.sqrt(1.4 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        z = 1.0 + 0.2 * np.abs(z)
    elif name.endswith("weight"):
        z = 1.0 + 0.1 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)


def image(size) -> np.ndarray:
    """Returns an RGB image 0..255, float32 `[height, width, 3]`."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    channels = [np.sin(rows / 7) * np.cos(columns / 5), np.sin((rows + columns) / 11)]
    channels.append(np.cos(rows / 3 - columns / 13))
    random = np.random.RandomState(size[0] * 1000 + size[1])
    noise = random.uniform(-40, 40, (*size, 3))
    return np.clip(127 + 80 * np.stack(channels, -1) + noise, 0, 255).astype(np.float32)


def torchvision_network(name: str, **options):
    """Returns a segmentation network of torchvision."""
    from torchvision.models import segmentation

    build = getattr(segmentation, name)
    return build(weights=None, weights_backbone=None, **options)


def smp_network(kind: str, **options):
    """Returns a network of segmentation_models_pytorch."""
    import segmentation_models_pytorch as smp

    return getattr(smp, kind)(encoder_weights=None, **options)


def mmseg_network(depth: int, kind: str, **options):
    """Returns a network of MMSegmentation."""
    # mmcv-lite has no compiled operations. MMSegmentation imports them, but DeepLab
    # calls none.
    operations = types.ModuleType("mmcv._ext")
    operations.__getattr__ = lambda name: name
    sys.modules.setdefault("mmcv._ext", operations)
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    norm = {"type": "BN", "requires_grad": True}
    plus = kind == "DepthwiseSeparableASPPHead"
    head = {"c1_in_channels": 256, "c1_channels": 48} if plus else {}
    backbone = {
        "type": options.get("backbone", "ResNetV1c"),
        "depth": depth,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "dilations": options.get("dilations", (1, 1, 2, 4)),
        "strides": options.get("strides", (1, 2, 1, 1)),
        "multi_grid": options.get("multi_grid"),
        "norm_cfg": norm,
        "norm_eval": False,
        "style": "pytorch",
        "contract_dilation": True,
    }
    return MODELS.build(
        {
            "type": "EncoderDecoder",
            "backbone": backbone,
            "decode_head": {
                "type": kind,
                "in_channels": 2048,
                "in_index": 3,
                "channels": options.get("channels", 512),
                "dilations": options.get("rates", (1, 12, 24, 36)),
                "dropout_ratio": 0.1,
                "num_classes": options.get("num_classes", 19),
                "norm_cfg": norm,
                "align_corners": False,
                **head,
            },
        }
    )


def transformers_network(**options):
    """Returns a MobileNetV2 of Hugging Face."""
    import transformers

    config = transformers.MobileNetV2Config(
        **{"output_stride": 8, "num_labels": 21, **options}
    )
    return transformers.MobileNetV2ForSemanticSegmentation(config)


def classifier(name: str, **options):
    """Returns an ImageNet classifier of torchvision."""
    import torchvision

    return getattr(torchvision.models, name)(weights=None, **options)


def timm_classifier(name: str, **options):
    """Returns an ImageNet classifier of timm."""
    import timm

    return timm.create_model(name, pretrained=False, **options)


V3, PLUS = "ASPPHead", "DepthwiseSeparableASPPHead"
_D16 = {"dilations": (1, 1, 1, 2), "strides": (1, 2, 2, 1), "rates": (1, 6, 12, 18)}
NETWORKS = {
    "torchvision_resnet50": (
        torchvision_network,
        {"name": "deeplabv3_resnet50", "aux_loss": True},
    ),
    "torchvision_resnet101": (
        torchvision_network,
        {"name": "deeplabv3_resnet101", "num_classes": 5},
    ),
    "torchvision_mobilenet_v3": (
        torchvision_network,
        {"name": "deeplabv3_mobilenet_v3_large", "aux_loss": True},
    ),
    "torchvision_lraspp": (torchvision_network, {"name": "lraspp_mobilenet_v3_large"}),
    "torchvision_lraspp_19": (
        torchvision_network,
        {"name": "lraspp_mobilenet_v3_large", "num_classes": 19},
    ),
    "torchvision_mobilenet_v3_7": (
        torchvision_network,
        {"name": "deeplabv3_mobilenet_v3_large", "num_classes": 7},
    ),
    **{
        f"smp_{label}_{encoder}_{stride}": (
            smp_network,
            {
                "kind": kind,
                "encoder_name": encoder,
                "encoder_output_stride": stride,
                "classes": classes,
            },
        )
        for label, kind, encoder, stride, classes in (
            ("v3", "DeepLabV3", "resnet34", 8, 21),
            ("v3", "DeepLabV3", "resnet50", 16, 4),
            ("v3", "DeepLabV3", "mobilenet_v2", 8, 19),
            ("v3plus", "DeepLabV3Plus", "resnet18", 16, 3),
            ("v3plus", "DeepLabV3Plus", "resnet101", 16, 21),
            ("v3plus", "DeepLabV3Plus", "resnet50", 8, 11),
            ("v3plus", "DeepLabV3Plus", "mobilenet_v2", 16, 21),
            ("v3plus", "DeepLabV3Plus", "mobilenet_v2", 8, 2),
        )
    },
    "mmseg_v3_r50_d8": (mmseg_network, {"depth": 50, "kind": V3}),
    "mmseg_v3_r101_d16_mg124": (
        mmseg_network,
        {"depth": 101, "kind": V3, "multi_grid": (1, 2, 4), **_D16},
    ),
    "mmseg_v3_r50b_d8": (
        mmseg_network,
        {"depth": 50, "kind": V3, "backbone": "ResNet", "num_classes": 150},
    ),
    "mmseg_v3plus_r50_d8": (
        mmseg_network,
        {"depth": 50, "kind": PLUS, "num_classes": 21},
    ),
    "mmseg_v3plus_r101_d16_mg124": (
        mmseg_network,
        {"depth": 101, "kind": PLUS, "multi_grid": (1, 2, 4), **_D16},
    ),
    "mmseg_v3plus_r101_d8": (
        mmseg_network,
        {"depth": 101, "kind": PLUS, "num_classes": 150},
    ),
    "transformers_mobilenet_v2": (transformers_network, {}),
    "transformers_mobilenet_v2_16": (
        transformers_network,
        {"output_stride": 16, "num_labels": 5},
    ),
    "transformers_mobilenet_v2_05": (
        transformers_network,
        {"depth_multiplier": 0.5, "num_labels": 19},
    ),
}
GOLDEN = {
    "torchvision_lraspp": {},
    "torchvision_mobilenet_v3": {},
    "smp_v3_mobilenet_v2_8": {},
    "smp_v3plus_resnet18_16": {},
    "mmseg_v3plus_r50_d8": {"channels": 32},
    "transformers_mobilenet_v2_05": {},
}
CLASSIFIERS = {
    "torchvision_classifier_resnet50": (classifier, {"name": "resnet50"}),
    "torchvision_classifier_mobilenet_v2": (classifier, {"name": "mobilenet_v2"}),
    "torchvision_classifier_mobilenet_v3": (classifier, {"name": "mobilenet_v3_large"}),
    "timm_xception41": (timm_classifier, {"name": "xception41"}),
    "timm_resnet18": (timm_classifier, {"name": "resnet18"}),
    "timm_mobilenetv2_100": (timm_classifier, {"name": "mobilenetv2_100"}),
    "timm_mobilenetv3_large_100": (timm_classifier, {"name": "mobilenetv3_large_100"}),
}


def sizes_of(name: str, small: bool = False):
    """Returns the image sizes for a network."""
    if name.startswith("smp"):
        return SMALL_EVEN if small else EVEN
    return SMALL_ODD if small else ODD


def format_size(size) -> str:
    """Returns the key of the logits of a size."""
    return "x".join(map(str, size))


def read_case(path) -> tuple[dict, dict]:
    """Returns the shapes by name, and the logits by size, of a file of `main`."""
    content = dict(np.load(path))
    names, shapes = content.pop("names"), content.pop("shapes")
    parsed = [tuple(int(n) for n in s.split(",") if n) for s in shapes.tolist()]
    logits = {tuple(map(int, key.split("x"))): x for key, x in content.items()}
    return dict(zip(names.tolist(), parsed, strict=True)), logits


def procedural_weights(shapes: dict) -> dict:
    """Returns the state dict of `fill`."""
    counter = "num_batches_tracked"
    return {n: value(n, s) for n, s in shapes.items() if not n.endswith(counter)}


def logits_of(name: str, network, size) -> np.ndarray:
    """Returns the logits of `image(size)`, `[height, width, classes]`, at its size."""
    import torch

    with torch.inference_mode():
        return _logits(name, network, size)[0].permute(1, 2, 0).numpy()


def _logits(name: str, network, size):
    import torch

    pixels = torch.from_numpy(image(size)) / 255
    if name.startswith("transformers") or "xception" in name:
        pixels = (pixels - 0.5) / 0.5
    else:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        pixels = (pixels - torch.tensor(mean)) / torch.tensor(std)
    batch = pixels.permute(2, 0, 1)[None]
    if name in CLASSIFIERS:
        return _features(network, batch)
    if name.startswith("torchvision"):
        return network(batch)["out"]
    if name.startswith("mmseg"):
        return torch.nn.functional.interpolate(
            network(batch), size=size, mode="bilinear", align_corners=False
        )
    if name.startswith("transformers"):
        # The caller resizes them, here as in the official code.
        return torch.nn.functional.interpolate(
            network(batch).logits, size=size, mode="bilinear", align_corners=True
        )
    return network(batch)


def _features(network, batch):
    """Returns the features of a classifier that DeepLab uses, at stride 32."""
    if hasattr(network, "layer4"):
        for name, module in network.named_children():
            if name in ("avgpool", "global_pool"):
                return batch
            batch = module(batch)
    if hasattr(network, "stem"):
        return network.act(network.blocks(network.stem(batch)))
    if hasattr(network, "conv_stem"):
        return network.blocks(network.bn1(network.conv_stem(batch)))
    is_v2 = len(network.features) == 19
    return network.features[: 18 if is_v2 else None](batch)


def labels(size, classes: int) -> np.ndarray:
    """Returns labels `[height, width]`, with some pixels to ignore (255)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    ids = (rows // 9 + columns // 13) % classes
    return np.where((rows + columns) % 17 == 0, 255, ids)


def gradients_of(name: str, network, size) -> dict:
    """Returns the gradients of the mean cross-entropy by the parameters, by name.

    Batch normalisation is frozen and there is no dropout.
    """
    import torch

    network.requires_grad_(True)
    logits = _logits(name, network, size)
    target = torch.from_numpy(labels(size, logits.shape[1]))[None]
    torch.nn.functional.cross_entropy(logits, target, ignore_index=255).backward()
    named = network.named_parameters()
    return {key: x.grad.numpy() for key, x in named if x.grad is not None}


def fill(network) -> dict:
    """Replaces all values of a network by procedural ones; returns the shapes."""
    import torch

    shapes = {}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(value(name, tensor.shape)))
        shapes[name] = tuple(tensor.shape)
    return shapes


def main(arguments: list[str]) -> None:
    """Writes the files of the named networks, by default all."""
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--weights")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--gradients", action="store_true")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    known = NETWORKS | CLASSIFIERS
    for name in options.names or (GOLDEN if options.golden else known):
        build, arguments = known[name]
        extra = GOLDEN[name] if options.golden else {}
        network = build(**arguments, **extra).eval()
        shapes = fill(network)
        if options.weights:
            weights = np.load(options.weights)
            state = {key: torch.from_numpy(weights[key]) for key in weights.files}
            print(network.load_state_dict(state, strict=False))
        if options.gradients:
            gradients = gradients_of(name, network, SMALL_ODD[0])
            np.savez(options.folder / f"{name}_gradients.npz", **gradients)
            continue
        sizes = sizes_of(name, options.golden)
        logits = {format_size(s): logits_of(name, network, s) for s in sizes}
        step = STEP if options.golden else 1
        np.savez_compressed(
            options.folder / f"{name}.npz",
            names=np.array(list(shapes)),
            shapes=np.array([",".join(map(str, shape)) for shape in shapes.values()]),
            **{size: array[::step, ::step] for size, array in logits.items()},
        )
        if options.save:
            torch.save(network.state_dict(), options.folder / f"{name}.pth")
        print(name, {k: float(v.std()) for k, v in logits.items()}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
