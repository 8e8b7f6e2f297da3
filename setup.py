"""Package metadata of deeplab_tf; pyproject.toml only configures tools."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent


def package_version():
    """Reads `__version__` of the package without importing TensorFlow."""
    source = (ROOT / "deeplab_tf" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('deeplab_tf/__init__.py has no line __version__ = "..."')
    return match.group(1)


def long_description():
    """Returns the README without images and relative links, which an index breaks."""
    link = r"\[([^]]+)\]\((?!https:)[^)]*\)"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n\n", "", text)
    text = re.sub(rf"\s\(({link}(, )?)+\)", "", text.partition("\n## More")[0])
    return re.sub(link, r"\1", text)


# Ranges, for compatibility with other packages; constraints.txt pins the tested
# versions. The tests also pass with the lower bounds, on Python 3.10: TensorFlow 2.20
# is the first to accept protobuf 6, which tensorflow-metadata needs; Keras 3.12 is the
# last for Python 3.10; older Matplotlibs warn about pyparsing.
INSTALL_REQUIRES = [
    "tensorflow>=2.20",
    "keras>=3.12",
    "tensorflow-datasets>=4.9.9",
    # An undeclared dependency of tensorflow-datasets.
    "importlib-resources>=6.0",
    "numpy>=2.0",
    "absl-py>=2.1",
    "opencv-python-headless>=4.10.0.84",
    "Pillow>=10.4",
    "scipy>=1.14",
    "matplotlib>=3.10.8",
    "tqdm>=4.66",
    # Renders report.html and doctor.html.
    "jinja2>=3.1",
    # Reads class files such as YOLO's data.yaml.
    "PyYAML>=6.0",
    # Reads weights of Hugging Face; half a megabyte without dependencies, so that no
    # extra is needed to load them.
    "safetensors>=0.5",
]

EXTRAS_REQUIRE = {
    # TensorFlow loads CUDA from these packages instead of from the system.
    "gpu": ["tensorflow[and-cuda]>=2.20"],
    "hub": [
        # Loads the TF Hub modules of the model zoo.
        "tensorflow-hub>=0.16.1",
        # tensorflow-hub 0.16 imports pkg_resources, which setuptools 82 removed.
        "setuptools<82",
        # Load models of hf:// and kaggle:// handles.
        "huggingface-hub>=1.0",
        "kagglehub>=1.0",
    ],
    "export": [
        # Converts the exported SavedModel to ONNX; 1.17 is the first for protobuf 5+.
        "tf2onnx>=1.17",
        # Edits and checks the ONNX files of tf2onnx.
        "onnx>=1.17",
        # Runs ONNX files.
        "onnxruntime>=1.20",
        # Writes and runs OpenVINO files, faster than ONNX Runtime on many CPUs.
        "openvino>=2025.0",
        # Quantises OpenVINO files to 8 bits.
        "nncf>=2.15",
        # Runs TFLite files; replaces the deprecated tf.lite.Interpreter.
        "ai-edge-litert>=2.3",
        # Quantises TFLite files; replaces the deprecated optimizations of tf.lite.
        "litert-quantizer>=0.11",
    ],
    # Decodes COCO's polygon and run-length annotations.
    "coco": ["pycocotools>=2.0.8"],
    # The official code, to test the labels of the converter against.
    "cityscapes": ["cityscapesScripts>=2.2.4"],
    "tiff": [
        # Reads TIFFs with any number of channels.
        "tifffile>=2025.5.10",
        # Adds LZW, JPEG and Zstandard compression to tifffile.
        "imagecodecs>=2025.3.30",
    ],
    # Reads HEIF images, such as those of iPhones.
    "heif": ["pillow-heif>=0.22"],
    # Keeps the georeference of GeoTIFFs.
    "geo": ["rasterio>=1.4"],
    "robustness": [
        # Dependencies of imagecorruptions-imaug, the reference code of the common
        # corruptions. Install that with pip install --no-deps: it requires
        # opencv-python, which overwrites the files of the headless build.
        "scikit-image>=0.25",
        "numba>=0.68",
    ],
    # Displays training logs; no longer a dependency of TensorFlow 2.21.
    "tensorboard": ["tensorboard>=2.20"],
    # Experiment trackers of train.py --tracker.
    "wandb": ["wandb>=0.31"],
    "mlflow": ["mlflow-skinny>=3.17"],
    # Runs models and losses without TensorFlow, under KERAS_BACKEND=jax.
    "jax": ["jax[cpu]>=0.6.2"],
    # Validate examples/kubernetes in their tests.
    "kubernetes": ["kubernetes-validate>=1.31", "kubeflow-trainer-api>=2.1"],
    # Builds the documentation site (mkdocs.yml).
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
    # Runs examples/quickstart.ipynb in its test.
    "notebook": ["nbclient>=0.10", "ipykernel>=6.29"],
    # Runs convert, predict and eval on many machines (--runner). Not in the extra all:
    # Beam 2.77 needs older releases of protobuf, Pillow and pyarrow than
    # constraints.txt has.
    "beam": ["apache-beam>=2.77"],
    "peers": [
        # For comparison with its DeepLabv3+ in Keras 3.
        "keras-hub>=0.19",
        # For comparison with torchvision's DeepLabv3.
        "torch>=2.5",
    ],
    "dev": [
        "pytest>=8.0",
        # Runs tests in parallel: most use a single thread.
        "pytest-xdist>=3.6",
        # constraints.txt pins it, as releases may format differently.
        "ruff>=0.17",
        # Checks type hints; new releases report different errors.
        "mypy>=2.0",
        # Draws the structure of a model, as keras.utils.plot_model does.
        "pydot>=3.0",
        # Builds the wheel for tests/test_packaging.py offline.
        "setuptools>=77",
    ],
}

# Every extra that the quick tests use; not CUDA and PyTorch, which are gigabytes.
EXTRAS_REQUIRE["all"] = [
    requirement
    for extra, requirements in EXTRAS_REQUIRE.items()
    if extra not in ("gpu", "beam", "peers", "dev")
    for requirement in requirements
]

setup(
    name="deeplab_tf",
    version=package_version(),
    description="DeepLabv3 and DeepLabv3+ for TensorFlow 2 and Keras 3",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The deeplab_tf authors",
    keywords=["semantic segmentation", "DeepLab", "TensorFlow", "Keras"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["deeplab_tf", "deeplab_tf.*"]),
    package_data={
        # Marks the package as typed.
        "deeplab_tf": ["py.typed"],
        # Templates of report.html and doctor.html.
        "deeplab_tf.evaluation": ["templates/*"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": [
            "deeplab = deeplab_tf.programs.commands:main",
            "deeplab-train = deeplab_tf.programs.commands:train",
            "deeplab-eval = deeplab_tf.programs.commands:evaluate",
            "deeplab-vis = deeplab_tf.programs.commands:visualize",
            "deeplab-export = deeplab_tf.programs.commands:export",
            "deeplab-predict = deeplab_tf.programs.commands:predict",
            "deeplab-doctor = deeplab_tf.programs.commands:doctor",
            "deeplab-pretrain = deeplab_tf.programs.commands:pretrain",
            "deeplab-plan = deeplab_tf.programs.commands:plan",
            "deeplab-data-worker = deeplab_tf.programs.commands:data_worker",
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
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
