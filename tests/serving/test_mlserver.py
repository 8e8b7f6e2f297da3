"""A real MLServer with our runtime: the documented path, load and hostile requests."""

import concurrent.futures
import contextlib
import gzip
import io
import json
import os
import pathlib
import shutil
import subprocess
import urllib.error
import urllib.request
from ctypes.util import find_library

import numpy as np
import pytest
import tensorflow as tf
import wheels
import yaml
from conftest import ROOT
from doc_pages import find_blocks
from hostile_images import HOSTILE_IMAGES, JPEG
from PIL import Image
from program_runs import assert_refused

from benchmarks.kserve import Client, NoResponseError, RefusedError, Server
from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import ModelConfig
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.formats import load_artefact

EXAMPLE, PAGE = ROOT / "examples/serving", ROOT / "docs/serving.md"
PROGRAM = "benchmarks.serving_load"


def test_invalid_arguments_of_the_load_test_are_refused():
    assert_refused("--smallest=99 exceeds", PROGRAM, "--smallest=99", "--largest=9")


def test_ports_and_names_of_the_example_agree():
    settings = json.loads((EXAMPLE / "settings.json").read_text())
    nginx = (EXAMPLE / "nginx.conf").read_text()
    assert f"proxy_pass http://127.0.0.1:{settings['http_port']};" in nginx
    assert f"grpc_pass grpc://127.0.0.1:{settings['grpc_port']};" in nginx
    # Labels have four bytes per pixel.
    model = json.loads((EXAMPLE / "model-settings.json").read_text())["parameters"]
    assert settings["grpc_max_message_length"] > 5 * model["extra"]["max_pixels"]
    deployment, service = yaml.safe_load_all((EXAMPLE / "deployment.yaml").read_text())
    pod = deployment["spec"]["template"]
    server, proxy = pod["spec"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in proxy["ports"]}
    for name, port in ports.items():
        assert f"listen {port}" in nginx
        assert name in [one["targetPort"] for one in service["spec"]["ports"]]
    probes = [server[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert {one["httpGet"]["port"] for one in probes} == {ports["http"]}
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    kustomization = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text())
    [generator] = kustomization["configMapGenerator"]
    files = kustomization["resources"] + generator["files"]
    assert all((EXAMPLE / name).exists() for name in files)
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    assert volumes["nginx"]["configMap"]["name"] == generator["name"]


def test_memory_limit_exceeds_what_was_measured():
    deployment, _ = yaml.safe_load_all((EXAMPLE / "deployment.yaml").read_text())
    server = deployment["spec"]["template"]["spec"]["containers"][0]
    limit = int(server["resources"]["limits"]["memory"].removesuffix("Gi")) << 10
    # With images of the largest size that model-settings.json accepts.
    result = ROOT / "benchmarks/results/serving_load_largest.json"
    measured = json.loads(result.read_text())
    extra = json.loads((EXAMPLE / "model-settings.json").read_text())["parameters"]
    assert measured["settings"]["smallest"] ** 2 == extra["extra"]["max_pixels"]
    assert measured["settings"]["threads"] == extra["extra"]["threads"]
    highest = max(row["highest"] for row in measured["rows"].values())
    # Eight requests with pixels in JSON, of 16 MB each, need 1.8 GiB more.
    assert highest + 1800 <= limit <= 2 * highest


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A new environment with the wheel and what the page installs."""
    [command] = [x for x in find_blocks("sh", [PAGE]) if x.startswith("pip install")]
    packages = ["mlserver>=1.7,<2", "kubernetes-validate", *_words(command)[2:]]
    folder = tmp_path_factory.mktemp("server")
    return wheels.make_environment(folder, "export", *packages)


def _words(command):
    return [one.strip('"') for one in command.split()]


@pytest.fixture(scope="module")
def variables(environment):
    """The variables of a shell in which the environment is active."""
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return {**kept, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def served(variables, voc_root, voc_checkpoint, tmp_path_factory):
    """A folder in which the page's commands wrote an export and the server's files."""
    folder = tmp_path_factory.mktemp("path")
    checkpoint = pathlib.Path(voc_checkpoint).parent
    (folder / "deeplabv3_mnv2_pascal_trainval").symlink_to(checkpoint)
    photo = sorted((voc_root / "JPEGImages").glob("*.jpg"))[0]
    (folder / "photo.jpg").symlink_to(photo)
    export = find_blocks("bash", [PAGE])[0]
    export = export.replace("python export.py", "deeplab export")
    files = [x for x in find_blocks("sh", [PAGE]) if x.startswith("cat >")]
    assert len(files) == 3
    for script in (export, export.replace("served/deeplab/1", "deeplab.xml"), *files):
        run_shell(script, folder, variables)
    return folder


def run_shell(script, folder, variables, timeout=600):
    result = subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_documented_path_labels_a_photo(served, variables, voc_checkpoint):
    blocks = find_blocks("sh", [PAGE])
    [start] = [x for x in blocks if "mlserver start" in x]
    requests = [x for x in blocks if x.startswith("python - photo.jpg")]
    assert len(requests) == 2
    with open(served / "log", "wb") as log:
        command = [
            "bash",
            "-ec",
            start.replace("mlserver start", "exec mlserver start"),
        ]
        options = {"cwd": served, "env": variables, "stdout": log, "stderr": log}
        server = subprocess.Popen(command, **options)
        try:
            ready = "http://localhost:8080/v2/models/deeplab/ready"
            run_shell(f"until curl -sf {ready}; do sleep 0.2; done", served, variables)
            for script in requests:
                run_shell(script, served, variables)
        finally:
            server.terminate()
            assert server.wait(60) == 0, (served / "log").read_text()
    image = tf.io.decode_jpeg((served / "photo.jpg").read_bytes())
    model = build_model(ModelConfig.from_official_flags({"output_stride": 16}))
    load_tf1_checkpoint(model, voc_checkpoint)
    labels = np.array(Image.open(served / "labels_http.png"))
    assert len(np.unique(labels)) > 1
    # Folding batch normalisation rounds the logits differently.
    assert (labels == predict_labels(model, image[None])[0]).mean() > 0.9999
    overlay = np.array(Image.open(served / "overlay.png"))
    assert overlay.shape == image.shape
    has_class = labels > 0
    changed = (overlay != np.array(Image.open(served / "photo.jpg"))).any(-1)
    # The second request sends pixels that Pillow decoded.
    assert (changed == has_class).mean() > 0.99


@pytest.mark.slow
@pytest.mark.skipif(not find_library("jemalloc"), reason="needs jemalloc")
def test_load_restarts_and_hostile_requests(served, variables):
    """3,000 requests to each export, 8 at a time, and again with five restarts."""
    command = "python -m benchmarks.serving_load --requests=3000 --clients=8 "
    command += "--restarts=5 --export_paths=served/deeplab/1,deeplab.xml --json=load"
    checkout = {**variables, "PYTHONPATH": str(ROOT)}
    print(run_shell(command, served, checkout, timeout=3600))
    for row in json.loads((served / "load").read_text())["rows"].values():
        assert row["last quarter"] <= 1.01 * row["first quarter"]
        assert row["repeated"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["served/deeplab/1", "deeplab.xml"])
def test_hostile_images_do_not_affect_other_clients(
    served, environment, tmp_path, name, batch
):
    model = load_artefact(str(served / name))
    expected = model.labels(tf.io.decode_jpeg(JPEG)[None])[0]
    options = {"programs": str(environment / "bin"), "max_batch_size": batch}
    with Server(tmp_path, str(served / name), **options) as server:
        client = Client(server)
        resident = server.resident()

        def send(hostile):
            first, second = client.label_over_http([hostile, JPEG])
            [alone] = client.label_over_http([hostile])
            return first, second, alone

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(send, 3 * list(HOSTILE_IMAGES.values())))
        for (empty, error), (png, none), alone in answers:
            assert alone == (empty, error)
            assert (empty, none) == (b"", "") and error.startswith("the image is not")
            np.testing.assert_array_equal(Image.open(io.BytesIO(png)), expected)
        packed = {"Content-Encoding": "gzip"}
        for body, headers in (
            (b"[" * (5 << 20), {}),
            (gzip.compress(bytes(400 << 20)), packed),
        ):
            with pytest.raises(RefusedError):
                client.post(body, headers)
        assert server.resident() - resident < 300 << 20


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_limits_requests_but_not_health(served, environment, tmp_path):
    programs = str(environment / "bin")
    with Server(tmp_path, str(served / "served/deeplab/1"), programs) as server:
        client = Client(server)
        with contextlib.ExitStack() as open_requests:
            slow = [client.start_request(1000) for _ in range(12)]
            for one in slow:
                open_requests.enter_context(one)
            statuses = [read_status(one) for one in slow]
            assert statuses.count(503) == 4 and statuses.count(None) == 8
            assert server.is_ready()
            with pytest.raises(NoResponseError, match="503"):
                client.post(b"{}")
        [(png, error)] = client.label_over_http([JPEG])
        assert png and not error
        url = f"http://127.0.0.1:{server.http_port}"
        for path in ("/v2/repository/index", "/v2/models/deeplab/unload", "/metrics"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url + path, b"{}")


def read_status(connection):
    """Returns the status of a response that has arrived, or None."""
    connection.settimeout(0.3)
    try:
        return int(connection.recv(100).split()[1])
    except TimeoutError:
        return None


@pytest.mark.slow
def test_manifests_are_valid(variables):
    command = f"kubernetes-validate --strict {EXAMPLE / 'deployment.yaml'}"
    run_shell(command, ROOT, variables)


@pytest.mark.slow
def test_image_has_what_the_page_installs_and_starts(served):
    lines = (EXAMPLE / "Dockerfile").read_text().splitlines()
    [install] = [x for x in lines if x.startswith("RUN pip")]
    assert '"$(ls /tmp/*.whl)[export]"' in install and '"mlserver>=' in install
    [copied] = [x.split()[1] for x in lines if x.startswith("COPY deeplab")]
    assert (served / "served" / copied).is_dir()
    assert (served / "served/settings.json").exists()
    command = json.loads(lines[-1].removeprefix("CMD "))
    assert command == ["mlserver", "start", "/models"]
    page = PAGE.read_text()
    for name in ("TF_ENABLE_ONEDNN_OPTS", "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"):
        assert f"ENV {name}=1" in lines and f" {name}=1" in page
