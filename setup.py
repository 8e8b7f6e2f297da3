"""Package metadata of deeplab_tf; pyproject.toml configures the tools only."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent


def package_version():
    """Returns `__version__` of the package, read without importing TensorFlow."""
    source = (ROOT / "deeplab_tf" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('deeplab_tf/__init__.py has no line __version__ = "..."')
    return match.group(1)


def long_description():
    """Returns the README, or nothing where a source archive left it out."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# Ranges, so that the library installs beside others; constraints.txt holds the exact
# versions that are tested. The tests pass with the lower bounds too, on Python 3.10:
# TensorFlow 2.20 is the first to accept the protobuf 6 that tensorflow-metadata needs,
# Keras 3.12 the last for Python 3.10, and older Matplotlibs warn about pyparsing.
INSTALL_REQUIRES = [
    "tensorflow>=2.20",
    "keras>=3.12",
    "tensorflow-datasets>=4.9.9",
    # tensorflow-datasets imports it to prepare data sets, without asking for it.
    "importlib-resources>=6.0",
    "numpy>=2.0",
    "absl-py>=2.1",
    "opencv-python-headless>=4.10.0.84",
    "Pillow>=10.4",
    "scipy>=1.14",
    "matplotlib>=3.10.8",
    "tqdm>=4.66",
    # Writes report.html from its template, in which every text is escaped.
    "jinja2>=3.1",
]

EXTRAS_REQUIRE = {
    # TensorFlow loads CUDA from these packages instead of from the system.
    "gpu": ["tensorflow[and-cuda]>=2.20"],
    "hub": [
        # Reads the published TF Hub modules of the model zoo.
        "tensorflow-hub>=0.16.1",
        # tensorflow-hub 0.16 imports pkg_resources, which setuptools 82 removed.
        "setuptools<82",
    ],
    "export": [
        # Converts the exported SavedModel to ONNX; 1.17 is the first for protobuf 5+.
        "tf2onnx>=1.17",
        # Reads and checks the ONNX file that tf2onnx writes.
        "onnx>=1.17",
        # Runs the ONNX file to prove that it equals the Keras model.
        "onnxruntime>=1.20",
        # The same with another engine, which is faster on many CPUs.
        "openvino>=2025.0",
        # Runs TFLite files; it replaces the deprecated tf.lite.Interpreter.
        "ai-edge-litert>=2.1",
    ],
    # Draws COCO's polygon and run-length annotations as label maps.
    "coco": ["pycocotools>=2.0.8"],
    # The authors' own code: its labels are what ours are tested against.
    "cityscapes": ["cityscapesScripts>=2.2.4"],
    "tiff": [
        # Reads the pages and planes of TIFFs, of any number of channels.
        "tifffile>=2025.5.10",
        # Decompresses what tifffile alone does not: LZW, JPEG, Zstandard.
        "imagecodecs>=2025.3.30",
    ],
    "robustness": [
        # What imagecorruptions-imaug, the reference code of the common corruptions,
        # depends on. It has to be installed by itself with pip install --no-deps, for
        # it asks for opencv-python, whose files replace those of the headless build.
        "scikit-image>=0.25",
        "numba>=0.68",
    ],
    # Shows what train.py writes; TensorFlow 2.21 no longer brings it.
    "tensorboard": ["tensorboard>=2.20"],
    # Runs models and losses without TensorFlow, under KERAS_BACKEND=jax.
    "jax": ["jax[cpu]>=0.6.2"],
    "peers": [
        # Engines to compare speed with, as in the extra export.
        "openvino>=2025.0",
        "onnxruntime>=1.20",
        # Has a Keras 3 DeepLabv3+ of its own, to compare with.
        "keras-hub>=0.19",
        # The framework of torchvision's DeepLabv3, to compare with.
        "torch>=2.5",
    ],
    "dev": [
        # Runs the tests.
        "pytest>=8.0",
        # Runs them in several processes: most of their time is one thread's.
        "pytest-xdist>=3.6",
        # Formats and lints; a new ruff may format differently, so constraints.txt pins.
        "ruff>=0.17",
        # Checks the hints of the public modules; new releases find other faults.
        "mypy>=2.0",
        # Builds the wheel that tests/test_packaging.py opens, without the network.
        "setuptools>=77",
    ],
}

setup(
    name="deeplab_tf",
    version=package_version(),
    description="DeepLabv3 and DeepLabv3+ for TensorFlow 2 and Keras 3",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["deeplab_tf", "deeplab_tf.*"]),
    package_data={
        # Tells type checkers that the public names have hints.
        "deeplab_tf": ["py.typed"],
        # What report.html is made of.
        "deeplab_tf.evaluation": ["templates/*"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": [
            "deeplab-train = deeplab_tf.programs.commands:train",
            "deeplab-eval = deeplab_tf.programs.commands:evaluate",
            "deeplab-export = deeplab_tf.programs.commands:export",
            "deeplab-predict = deeplab_tf.programs.commands:predict",
            "deeplab-doctor = deeplab_tf.programs.commands:doctor",
            "deeplab-pretrain = deeplab_tf.programs.commands:pretrain",
            "deeplab-plan = deeplab_tf.programs.commands:plan",
            "deeplab-convert = deeplab_tf.programs.commands:convert",
        ]
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
