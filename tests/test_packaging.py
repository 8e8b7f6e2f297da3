"""The wheel, the shell scripts and the shared libraries of a fresh installation."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest
import wheels

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ["demo.sh", "test.sh", "tools/venv.sh", ".ci/run"]
SCRIPTS_OF_THE_WHEEL = [
    *("deeplab", "deeplab-convert", "deeplab-data-worker", "deeplab-doctor"),
    *("deeplab-eval", "deeplab-export"),
    *("deeplab-plan", "deeplab-predict", "deeplab-pretrain", "deeplab-train"),
    "deeplab-vis",
]
# The only programs on the fake PATH: what the scripts call in addition to Python.
TOOLS = ["awk", "bash", "cksum", "df", "dirname", "env", "grep", "rm", "sed", "tail"]
TOOLS += ["touch", "tr", "cat"]

# A fake Python that only reports a version.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *"import venv, ensurepip"*) exit {venv_status} ;;
  *) echo {version} ;;
esac
"""
FAKE_DF = """#!/bin/sh
echo "Filesystem 1024-blocks Used Available Capacity Mounted on"
echo "/dev/fake 100000000 98000000 2000000 98% /"
"""


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def fresh_machine(tmp_path):
    """A copy of the scripts, and the only folder on PATH."""
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    checkout = tmp_path / "check out"  # with a space on purpose
    checkout.mkdir()
    for name in ["demo.sh", "test.sh", "setup.py", "constraints.txt"]:
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "tools", checkout / "tools")
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool))
    return checkout, programs


def run_script(script, programs, **variables):
    # Runs in another folder: the scripts must find their own.
    return subprocess.run(
        [programs / "bash", script],
        env={"PATH": str(programs), **variables},
        cwd=programs,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_refused(result, *fragments):
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for fragment in fragments:
        assert fragment in result.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_valid_bash(name):
    result = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["demo.sh", "test.sh", ".ci/run"])
def test_script_is_executable(name):
    assert (ROOT / name).stat().st_mode & stat.S_IXUSR


OLD = {"python3": ("3.9", 0), "python3.12": ("3.9", 0), "python3.10": None}
TOO_OLD = ["3.10", "python3 (3.9)", "python3.10 (does not run)"]


@pytest.mark.parametrize(
    "script, pythons, fragments",
    [
        ("demo.sh", OLD, ["demo.sh", *TOO_OLD]),
        ("test.sh", OLD, ["test.sh", *TOO_OLD]),
        ("demo.sh", {}, ["needs Python 3.10", "found no Python", "apt install"]),
        (
            "demo.sh",
            {"python3": ("3.11", 1)},
            ["Python 3.11", "lacks", "apt install python3.11-venv"],
        ),
        # The variable PYTHON has priority.
        (
            "demo.sh",
            {"python3": ("3.11", 1), "../my python": ("3.13", 1)},
            ["Python 3.13", "my python"],
        ),
        # 2,000,000 blocks of 1024 bytes.
        ("demo.sh", {"python3": ("3.11", 0), "df": FAKE_DF}, ["5 GB", "2000 MB"]),
    ],
)
def test_missing_requirement_gives_one_line_error(
    fresh_machine, script, pythons, fragments
):
    checkout, programs = fresh_machine
    for name, python in pythons.items():
        # None is a pyenv shim of a version that is not selected.
        text = "#!/bin/sh\necho no such >&2\nexit 127\n"
        if isinstance(python, tuple):
            text = FAKE_PYTHON.format(version=python[0], venv_status=python[1])
        elif python:
            (programs / name).unlink()
            text = python
        write_program(programs / name, text)
    chosen = (programs / "../my python").resolve()
    variables = {"PYTHON": str(chosen)} if chosen.exists() else {}
    result = run_script(checkout / script, programs, **variables)
    assert_refused(result, *fragments)
    assert "my python" not in fragments or str(chosen) in result.stderr
    assert "2000 MB" not in fragments or str(checkout) in result.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere"
)
def test_missing_permission_gives_one_line_error(fresh_machine):
    checkout, programs = fresh_machine
    fake = FAKE_PYTHON.format(version="3.11", venv_status=0)
    write_program(programs / "python3", fake)
    checkout.chmod(0o555)
    try:
        assert_refused(run_script(checkout / "demo.sh", programs), "no permission")
    finally:
        checkout.chmod(0o755)


def test_environment_of_another_python_is_kept(fresh_machine):
    checkout, programs = fresh_machine
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    write_program(python, FAKE_PYTHON.format(version="3.9", venv_status=0))
    assert_refused(run_script(checkout / "demo.sh", programs), ".venv holds Python 3.9")
    assert python.exists()


# Logs its arguments; a virtual environment that it creates contains a copy of it.
RECORDING_PYTHON = """#!{bash}
echo "$*" >>"{calls}"
case "$*" in
  "-m venv --clear .venv")
    rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"pip install"*) {install} ;;
  "-m pip --version" | "-m ensurepip") [ ! -e "$0.has_no_pip" ] ;;
  *"print("*) echo 3.11 ;;
esac
"""


@pytest.fixture
def ensure_venv(fresh_machine):
    """The checkout, and a function that runs ensure_venv with a recording Python."""
    checkout, programs = fresh_machine
    for tool in ["cp", "mkdir"]:
        (programs / tool).symlink_to(shutil.which(tool))
    calls = programs.parent / "calls"
    script = programs.parent / "script.sh"

    def run(extras="", install=":", folder=checkout):
        start = f'set -euo pipefail; cd "{folder}"; . tools/venv.sh\n'
        script.write_text(f'{start}ensure_venv "{extras}"\n')
        text = RECORDING_PYTHON.format(
            bash=programs / "bash", calls=calls, install=install
        )
        write_program(programs / "python3", text)
        if (folder / ".venv" / "bin").exists():
            write_program(folder / ".venv" / "bin" / "python", text)
        calls.write_text("")
        result = run_script(script, programs)
        return result, re.findall("-m (?:venv|pip install).*", calls.read_text())

    return checkout, run


MAKE = "-m venv --clear .venv"
INSTALL = (
    "-m pip install --quiet --disable-pip-version-check --no-input"
    " --constraint constraints.txt --editable ."
)


def test_second_start_installs_nothing(ensure_venv):
    _, run = ensure_venv
    result, calls = run()
    assert (result.returncode, result.stderr) == (0, "")
    assert calls == [MAKE, INSTALL]
    result, calls = run()
    assert (result.returncode, result.stdout, calls) == (0, "", [])
    # Adds an extra and keeps the previous ones.
    assert run("dev")[1] == [INSTALL + "[dev]"]
    assert run("hub")[1] == [INSTALL + "[hub]"]
    assert run()[1] == run("dev")[1] == run("hub,dev")[1] == []


def test_changed_constraints_are_installed_again(ensure_venv):
    checkout, run = ensure_venv
    constraints = checkout / "constraints.txt"
    before = constraints.read_text()
    for text in [before, before + "# another version\n", before]:
        constraints.write_text(text)
        assert run("dev")[1][-1] == INSTALL + "[dev]"
        assert run("dev")[1] == []


def test_copied_checkout_is_installed_again(ensure_venv):
    """The editable package points to the folder that it was installed from."""
    checkout, run = ensure_venv
    run()
    copy = shutil.copytree(checkout, checkout.with_name("copy"))
    assert run(folder=copy)[1] == [INSTALL]
    assert run(folder=copy)[1] == run()[1] == []


def test_killed_installation_starts_over(ensure_venv):
    checkout, run = ensure_venv
    for extras in ["", "dev"]:  # the second one extends an intact environment
        result, calls = run(extras, install="kill -9 $PPID")
        assert (result.returncode, calls[-1][: len(INSTALL)]) == (-9, INSTALL)
        assert (checkout / ".venv" / "installing").exists()
        result, calls = run()
        assert (result.returncode, calls) == (0, [MAKE, INSTALL])
        assert run()[1] == []


def test_broken_environment_is_recreated(ensure_venv):
    checkout, run = ensure_venv
    (checkout / ".venv" / "lib").mkdir(parents=True)  # without a Python
    result, calls = run()
    assert (result.returncode, calls) == (0, [MAKE, INSTALL])
    assert not (checkout / ".venv" / "lib").exists()
    (checkout / ".venv" / "bin" / "python.has_no_pip").touch()
    assert run()[1] == []
    assert run("dev")[1] == [MAKE, INSTALL + "[dev]"]


def test_pip_failure_gives_one_line_error(ensure_venv):
    checkout, run = ensure_venv
    result, _ = run(install="echo noise; echo 'ERROR: no match' >&2; exit 1")
    assert_refused(result, "pip could not install", "no match", ".venv/pip.log")
    assert (checkout / ".venv" / "pip.log").read_text() == "noise\nERROR: no match\n"
    # The environment is intact, so the next start only installs.
    result, calls = run()
    assert (result.returncode, calls) == (0, [INSTALL])


def test_python_versions_agree():
    supported = re.search('SUPPORTED="(.*)"', (ROOT / "tools/venv.sh").read_text())[1]
    setup = (ROOT / "setup.py").read_text()
    assert supported.split() == re.findall(r"Python :: (3\.\d+)", setup)
    assert supported.split() == ["3.10", "3.11", "3.12", "3.13"]
    assert 'python_requires=">=3.10,<3.14"' in setup


def test_version_is_the_same_everywhere():
    stated = re.search(
        r'^__version__ = "(.*)"', (ROOT / "deeplab_tf/__init__.py").read_text(), re.M
    )[1]
    assert f"\nversion: {stated}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {stated} (" in (ROOT / "CHANGELOG.md").read_text()


def test_every_constraint_is_exact():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(
            r'#.*|[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?', line
        )
    names = {re.split("==", line)[0] for line in lines}
    assert {"tensorflow", "keras", "numpy", "protobuf", "tf2onnx"} <= names


IMPORT = """
import sys, time
start = time.perf_counter()
import deeplab_tf
print(time.perf_counter() - start, *{"keras", "numpy", "tensorflow"} & {*sys.modules})
"""


def test_import_takes_less_than_a_fifth_of_a_second():
    def run():
        command = [sys.executable, "-c", IMPORT]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout

    seconds, *imported = min(run() for _ in range(5)).split()
    assert float(seconds) < 0.2 and not imported


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """A source archive of the tracked files."""
    return wheels.build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """A wheel built from the source archive."""
    return wheels.build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def test_source_archive_contains_the_repository(sdist):
    with tarfile.open(sdist) as archive:
        members = [member.name for member in archive if member.isfile()]
    archived = {name.partition("/")[2] for name in members}
    generated = {"PKG-INFO", "setup.cfg"}
    archived = {name for name in archived - generated if ".egg-info/" not in name}
    assert archived == wheels.tracked_files()


def test_wheel_contains_only_the_package(wheel):
    """A top-level `datasets` would shadow the one of Hugging Face."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [n for n in names if n.endswith("entry_points.txt")]
        scripts = archive.read(entry_points).decode()
        [metadata] = [name for name in names if name.endswith("METADATA")]
        description = archive.read(metadata).decode()
    assert "\nAuthor: The deeplab_tf authors\n" in description
    assert "\n## Usage\n" in description
    # An index shows no files of the repository.
    assert not re.search(r"\]\((?!https://)", description)
    folders = {name.split("/")[0] for name in names}
    assert folders == {"deeplab_tf", wheel.name.split("-py3")[0] + ".dist-info"}
    modules = {n for n in wheels.tracked_files() if re.match(r"deeplab_tf/.*\.py$", n)}
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.endswith("LICENSE") for name in names)
    assert "deeplab_tf/py.typed" in names
    pages = ("dataset.html", "page.html", "parts.html", "report.css", "report.html")
    templates = {f"deeplab_tf/evaluation/templates/{page}" for page in pages}
    assert templates <= set(names)
    assert re.findall(r"^(deeplab\S*) = ", scripts, re.M) == SCRIPTS_OF_THE_WHEEL


@pytest.fixture(scope="module")
def installed_wheel(wheel, tmp_path_factory):
    """A function that runs a script of the wheel, and the folder in which it runs.

    The wheel is installed next to an unrelated package named `datasets`.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = folder / "environment"
    packages = wheels.install(wheel, environment)
    (packages / "datasets").mkdir()
    (packages / "datasets/__init__.py").write_text('FOREIGN = "yes"\n')

    def run(script, *arguments):
        result = wheels.run(environment / "bin" / script, *arguments, folder=folder)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run, folder


@pytest.mark.slow
def test_wheel_scripts_run_outside_the_checkout(installed_wheel, tiny_voc, voc_root):
    run, folder = installed_wheel
    script = "import datasets, deeplab_tf; print(datasets.FOREIGN, deeplab_tf.__file__)"
    output = run("python", "-c", script).split()
    assert output[0] == "yes" and output[1].startswith(str(folder / "environment"))
    outputs, records = {}, "--dataset_dir=tfrecord"
    outputs["deeplab-convert"] = run(
        *("deeplab-convert", "voc2012", f"--voc_root={tiny_voc}"),
        "--output_dir=tfrecord",
    )
    assert (folder / "tfrecord/dataset_info.json").exists()
    outputs["deeplab-doctor"] = run("deeplab-doctor", records)
    assert "safe to train" in outputs["deeplab-doctor"]
    outputs["deeplab-train"] = run(
        *("deeplab-train", "--depth_multiplier=0.1", "--train_crop_size=33,33"),
        *("--train_batch_size=2", "--training_number_of_steps=1"),
        *(records, "--train_logdir=logs"),
    )
    assert "logs: 1 step," in outputs["deeplab-train"]
    outputs["deeplab-eval"] = run(
        *("deeplab-eval", "--checkpoint_dir=logs", records, "--eval_logdir=eval")
    )
    assert (folder / "eval/report.html").exists()
    outputs["deeplab-vis"] = run(
        *("deeplab-vis", "--checkpoint_dir=logs", records, "--vis_logdir=vis")
    )
    assert (folder / "vis/segmentation_results/000001_prediction.png").exists()
    outputs["deeplab-export"] = run(
        "deeplab-export", "--checkpoint_path=logs", "--export_path=exported"
    )
    photo = sorted((voc_root / "JPEGImages").glob("*.jpg"))[0]
    outputs["deeplab-predict"] = run(
        *("deeplab-predict", "--model=exported", f"--images={photo}"),
        "--output_dir=pictures",
    )
    assert (folder / f"pictures/{photo.stem}_overlay.png").exists()
    # Needs a dataset in tensorflow-datasets; see tests/pretrain/test_program.py.
    outputs["deeplab-pretrain"] = run("deeplab-pretrain", "--help")
    outputs["deeplab"] = run("deeplab", "train", "--help")
    assert outputs["deeplab"] == run("deeplab-train", "--help")
    assert "--learning_rate_decay_epochs" in outputs["deeplab-pretrain"]
    outputs["deeplab-plan"] = run(
        *("deeplab-plan", "--model_variant=mobilenet_v3_small_seg", "--steps=1"),
        *("--crop_sizes=33", "--batch_sizes=2", "--train_batch_size=4"),
    )
    assert "--accumulate_steps=2" in outputs["deeplab-plan"]
    assert sorted(outputs) == sorted(SCRIPTS_OF_THE_WHEEL)


# Imports the dependencies and every module, then prints the loaded libraries.
LOADED_LIBRARIES = """
import importlib, pkgutil
for name in ["absl", "cv2", "keras", "matplotlib.pyplot", "numpy", "PIL.Image",
             "scipy.ndimage", "tensorflow", "tensorflow_datasets", "tqdm"]:
    importlib.import_module(name)
import deeplab_tf
for module in pkgutil.walk_packages(deeplab_tf.__path__, "deeplab_tf."):
    importlib.import_module(module.name)
with open("/proc/self/maps") as maps:
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps if ".so" in line}
print("loaded", *sorted(paths), sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("ldd") is None,
    reason="reads /proc/self/maps and runs ldd, which only Linux has",
)
def test_shared_libraries_need_no_desktop():
    """Servers and slim containers have neither libGL nor X."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", LOADED_LIBRARIES]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    libraries = result.stdout.split("loaded\n")[1].splitlines()
    assert any("tensorflow" in path for path in libraries)
    assert any("cv2" in path for path in libraries)
    command = ["ldd", *libraries]
    needed = subprocess.run(command, capture_output=True, text=True).stdout
    assert "libc.so" in needed
    # ldd checks one library at a time, so it misses those loaded by others.
    loaded = {pathlib.Path(path).name for path in libraries}
    for line in needed.splitlines():
        name = line.split()[0]
        assert "not found" not in line or name in loaded
        # Pillow has its own libxcb; none may come from the system.
        assert (
            not name.startswith(("libGL", "libX", "libxcb")) or "/pillow.libs" in line
        )
