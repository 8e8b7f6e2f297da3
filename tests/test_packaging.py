"""The wheel, the shell scripts and the shared libraries of a fresh installation."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ["demo.sh", "test.sh", "tools/venv.sh", ".ci/run"]
# What the scripts call besides Python; a fake PATH has these and nothing else.
TOOLS = ["awk", "bash", "cksum", "df", "dirname", "env", "grep", "rm", "sed", "tail"]
TOOLS += ["touch", "tr", "cat"]

# A Python that answers a version without being one.
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
    """A copy of the scripts, and a folder to be the only one on PATH."""
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    checkout = tmp_path / "check out"  # the space is meant
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
    # From another folder: the scripts have to find their own.
    return subprocess.run(
        [programs / "bash", script],
        env={"PATH": str(programs), **variables},
        cwd=programs,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_refuses(result, *fragments):
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


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
def test_too_old_python_is_one_line(fresh_machine, script):
    checkout, programs = fresh_machine
    for name in ["python3", "python3.12"]:
        fake = FAKE_PYTHON.format(version="3.9", venv_status=0)
        write_program(programs / name, fake)
    # A pyenv shim of a version that is not selected.
    write_program(programs / "python3.10", "#!/bin/sh\necho no such >&2\nexit 127\n")
    result = run_script(checkout / script, programs)
    assert_refuses(result, script, "3.10", "python3 (3.9)", "python3.10 (does not run)")
    assert not (checkout / ".venv").exists()


def test_no_python_is_one_line(fresh_machine):
    checkout, programs = fresh_machine
    result = run_script(checkout / "demo.sh", programs)
    assert_refuses(result, "needs Python 3.10", "found no Python", "apt install")


def test_python_without_venv_is_one_line(fresh_machine):
    checkout, programs = fresh_machine
    fake = FAKE_PYTHON.format(version="3.11", venv_status=1)
    write_program(programs / "python3", fake)
    result = run_script(checkout / "demo.sh", programs)
    assert_refuses(result, "Python 3.11", "lacks", "apt install python3.11-venv")


def test_python_of_the_variable_comes_first(fresh_machine):
    checkout, programs = fresh_machine
    write_program(programs / "python3", FAKE_PYTHON.format(version=3.11, venv_status=1))
    chosen = programs.parent / "my python"
    write_program(chosen, FAKE_PYTHON.format(version=3.13, venv_status=1))
    result = run_script(checkout / "demo.sh", programs, PYTHON=str(chosen))
    assert_refuses(result, "Python 3.13", str(chosen))


def test_too_little_disk_is_one_line(fresh_machine):
    checkout, programs = fresh_machine
    fake = FAKE_PYTHON.format(version="3.11", venv_status=0)
    write_program(programs / "python3", fake)
    (programs / "df").unlink()
    write_program(programs / "df", FAKE_DF)
    result = run_script(checkout / "demo.sh", programs)
    # 2,000,000 blocks of 1024 bytes.
    assert_refuses(result, "5 GB", "2000 MB", str(checkout))
    assert not (checkout / ".venv").exists()


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere"
)
def test_no_write_permission_is_one_line(fresh_machine):
    checkout, programs = fresh_machine
    fake = FAKE_PYTHON.format(version="3.11", venv_status=0)
    write_program(programs / "python3", fake)
    checkout.chmod(0o555)
    try:
        assert_refuses(run_script(checkout / "demo.sh", programs), "no permission")
    finally:
        checkout.chmod(0o755)


def test_environment_of_another_python_is_kept(fresh_machine):
    checkout, programs = fresh_machine
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    write_program(python, FAKE_PYTHON.format(version="3.9", venv_status=0))
    assert_refuses(run_script(checkout / "demo.sh", programs), ".venv holds Python 3.9")
    assert python.exists()


# Records its calls; makes a virtual environment whose python is itself.
RECORDING_PYTHON = """#!{bash}
echo "$*" >>"{calls}"
case "$*" in
  "-m venv --clear .venv")
    rm -rf .venv && mkdir -p .venv/bin && cp "{python}" .venv/bin/python ;;
  *"pip install"*) {install} ;;
  *"print("*) echo 3.11 ;;
esac
"""


@pytest.fixture
def recording_machine(fresh_machine):
    """As fresh_machine, with a Python that writes down how it was called."""
    checkout, programs = fresh_machine
    for tool in ["cp", "mkdir"]:
        (programs / tool).symlink_to(shutil.which(tool))
    calls = programs.parent / "calls"
    python = programs / "python3.11"

    def run(script="demo.sh", install=":"):
        text = RECORDING_PYTHON.format(
            bash=programs / "bash", calls=calls, python=python, install=install
        )
        write_program(python, text)
        if (checkout / ".venv" / "bin" / "python").exists():
            write_program(checkout / ".venv" / "bin" / "python", text)
        calls.write_text("")
        result = run_script(checkout / script, programs)
        made = [line.split(" ", 2)[:2] for line in calls.read_text().splitlines()]
        return result, made.count(["-m", "venv"]), made.count(["-m", "pip"])

    return checkout, calls, run


def test_second_start_installs_nothing(recording_machine):
    checkout, calls, run = recording_machine
    result, made, pip_calls = run()
    assert (result.returncode, result.stderr, made, pip_calls) == (0, "", 1, 1)
    assert "--constraint constraints.txt --editable .\n" in calls.read_text()
    assert calls.read_text().endswith("benchmarks/demo.py\n")
    result, made, pip_calls = run()
    assert (result.returncode, result.stdout, made, pip_calls) == (0, "", 0, 0)
    # test.sh wants the extra dev too: one call asks for pip, one installs.
    result, made, pip_calls = run("test.sh")
    assert (made, pip_calls) == (0, 2)
    assert "--editable .[dev]\n" in calls.read_text()
    # The package without extras is still in there.
    assert run()[1:] == (0, 0)
    with open(checkout / "constraints.txt", "a") as constraints:
        constraints.write("# another version\n")
    assert run()[1:] == (0, 2)


def test_killed_installation_starts_anew(recording_machine):
    checkout, _, run = recording_machine
    result, made, _ = run(install="kill -9 $PPID")
    assert (result.returncode, made) == (-9, 1)
    assert (checkout / ".venv" / "installing").exists()
    result, made, pip_calls = run()
    assert (result.returncode, made, pip_calls) == (0, 1, 1)
    assert not (checkout / ".venv" / "installing").exists()


def test_environment_without_python_is_made_anew(recording_machine):
    checkout, _, run = recording_machine
    (checkout / ".venv" / "lib").mkdir(parents=True)
    result, made, pip_calls = run()
    assert (result.returncode, made, pip_calls) == (0, 1, 1)
    assert not (checkout / ".venv" / "lib").exists()


def test_failure_of_pip_is_one_line(recording_machine):
    checkout, _, run = recording_machine
    result, _, _ = run(install="echo noise; echo 'ERROR: no match' >&2; exit 1")
    assert_refuses(result, "pip could not install", "no match", ".venv/pip.log")
    assert (checkout / ".venv" / "pip.log").read_text() == "noise\nERROR: no match\n"
    # The environment is sound, so the next start only installs.
    result, made, pip_calls = run()
    assert (result.returncode, made, pip_calls) == (0, 0, 2)


def test_python_versions_agree():
    supported = re.search('SUPPORTED="(.*)"', (ROOT / "tools/venv.sh").read_text())[1]
    setup = (ROOT / "setup.py").read_text()
    assert supported.split() == re.findall(r"Python :: (3\.\d+)", setup)
    assert supported.split() == ["3.10", "3.11", "3.12", "3.13"]
    assert 'python_requires=">=3.10,<3.14"' in setup


def test_every_constraint_is_exact():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(
            r'#.*|[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?', line
        )
    names = {re.split("==", line)[0] for line in lines}
    assert {"tensorflow", "keras", "numpy", "protobuf", "tf2onnx"} <= names


@pytest.mark.slow
def test_wheel_holds_the_package_alone(tmp_path):
    """A top-level `datasets` would shadow the one of Hugging Face."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ["setup.py", "pyproject.toml", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ["deeplab_tf", "datasets", "tests", "benchmarks", "tools"]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", tmp_path, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [n for n in names if n.endswith("entry_points.txt")]
        scripts = archive.read(entry_points).decode()
    folders = {name.split("/")[0] for name in names}
    assert folders == {"deeplab_tf", wheel.name.split("-py3")[0] + ".dist-info"}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "deeplab_tf").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.endswith("LICENSE") for name in names)
    assert "deeplab-train = deeplab_tf.programs.train:run" in scripts


# Imports the dependencies and every module, then prints what the process has loaded.
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
def test_shared_libraries_need_nothing_from_a_desktop():
    """On a server or in a slim container there is no libGL and no X."""
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
    # Pillow brings its own libxcb; from the system nothing of that kind may come.
    for line in needed.splitlines():
        assert "not found" not in line
        assert "libGL" not in line
        assert "libxcb" not in line or "site-packages" in line
