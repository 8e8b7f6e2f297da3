"""Builds and installs the wheel without the network."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import pytest
from conftest import ROOT


def tracked_files():
    """Returns the tracked paths, relative to the root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    command = ["git", "ls-files", "-z"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:  # for example a checkout of another user
        pytest.skip(result.stderr)
    return {name for name in result.stdout.split("\0") if (ROOT / name).is_file()}


def _build(kind, source, folder):
    """Builds an "sdist" or a "wheel"; returns its path."""
    script = "import sys; from setuptools import build_meta as b; "
    script += f"print(b.build_{kind}(sys.argv[1]), end='')"
    command = [sys.executable, "-W", "ignore", "-c", script, folder]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / result.stdout.splitlines()[-1]


def build_sdist(folder):
    """Builds a source archive of the tracked files; returns its path."""
    source = folder / "source"
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    return _build("sdist", source, folder)


def build_wheel(sdist, folder):
    """Builds a wheel from a source archive; returns its path."""
    source = unpack(sdist, folder / "unpacked")
    return _build("wheel", source, folder)


def unpack(sdist, folder):
    """Unpacks a source archive into a new folder; returns the folder of setup.py."""
    # Python before 3.10.12 and 3.11.4 has no filters; 3.12 and 3.13 warn without one.
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **options)
    [source] = folder.iterdir()
    return source


def install(wheel, environment):
    """Installs a wheel in a new virtual environment; returns its `site-packages`.

    Requirements come from the environment of the tests.
    """
    command = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(command, check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    # The requirements, without the editable installation: no .pth is read in there.
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", environment / "bin/python"]
    command += ["install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True)
    return packages


def make_environment(folder, extras, *packages):
    """Creates an environment with the wheel, its extras and packages of the index."""
    wheel = build_wheel(build_sdist(folder), folder)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin/python", "-m", "pip", "install", "--quiet"]
    installed = run(*pip, f"{wheel}[{extras}]", *packages, folder=folder)
    assert installed.returncode == 0, installed.stderr
    return environment


def run(*command, folder):
    """Runs a command in a folder, outside of the checkout."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True
    )
