"""The examples for Kubernetes are valid, and their commands run."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import wheels
import yaml
from conftest import ROOT
from loopback import cluster_configs, find_free_ports

EXAMPLE = ROOT / "examples/kubernetes"
SHORT = (
    *("--depth_multiplier=0.1", "--aspp_convs_filters=16"),
    *("--train_batch_size=4", "--training_number_of_steps=2", "--batch_norm=freeze"),
)


def read_all(name):
    return list(yaml.safe_load_all((EXAMPLE / name).read_text()))


def read(name):
    """Returns the objects of a manifest by kind."""
    return {each["kind"]: each for each in read_all(name)}


def find_containers(name):
    """Returns the containers of a manifest by name."""
    specs = [each["spec"] for each in read_all(name)]
    pods = [spec["template"]["spec"] for spec in specs if "template" in spec]
    return {each["name"]: each for pod in pods for each in pod["containers"]}


def find_job():
    job = read("job.yaml")["Job"]["spec"]
    pod = job["template"]["spec"]
    return job["completions"], pod["containers"][0], pod["containers"][0]


def find_trainjob():
    found = read("kubeflow_trainjob.yaml")
    trainer = found["TrainJob"]["spec"]["trainer"]
    [job] = found["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    return trainer["numNodes"], trainer, container


WORKERS = {"job.yaml": find_job, "kubeflow_trainjob.yaml": find_trainjob}


@pytest.mark.parametrize("name", ["job", "input_service", "label_on_dask"])
def test_manifests_match_the_published_schemas(name):
    pytest.importorskip("kubernetes_validate")
    path = EXAMPLE / f"{name}.yaml"
    command = (sys.executable, "-m", "kubernetes_validate", "--strict", path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["TrainingRuntime", "TrainJob"])
def test_trainjob_matches_the_published_models(kind):
    models = pytest.importorskip("kubeflow_trainer_api.models")
    model = getattr(models, f"TrainerV1alpha1{kind}")
    found = read("kubeflow_trainjob.yaml")[kind]
    # The models ignore fields that they do not know.
    assert drop_none(model.from_dict(found).to_dict()) == found


@pytest.mark.parametrize(
    ("name", "server"),
    [("input_service", "dispatcher"), ("label_on_dask", "scheduler")],
)
def test_services_find_their_pods(name, server):
    objects = read_all(f"{name}.yaml")
    [service] = [each for each in objects if each["kind"] == "Service"]
    deployments = [each["spec"] for each in objects if each["kind"] == "Deployment"]
    labels = [each["template"]["metadata"]["labels"] for each in deployments]
    assert labels == [each["selector"]["matchLabels"] for each in deployments]
    assert service["spec"]["selector"] == labels[0] != labels[1]
    containers = find_containers(f"{name}.yaml")
    [port] = service["spec"]["ports"]
    assert containers[server]["ports"] == [{"containerPort": port["port"]}]
    assert f"--port={port['port']}" in containers[server]["args"]
    address = f"//{service['metadata']['name']}:{port['port']}"
    clients = [each["args"] for key, each in containers.items() if key != server]
    assert all(any(address in argument for argument in each) for each in clients)


def drop_none(value):
    if isinstance(value, dict):
        return {k: drop_none(v) for k, v in value.items() if v is not None}
    return [drop_none(v) for v in value] if isinstance(value, list) else value


def test_pods_have_the_addresses_in_hosts():
    objects = read("job.yaml")
    job, service = objects["Job"], objects["Service"]["metadata"]["name"]
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service
    assert objects["Service"]["spec"]["selector"] == {
        "batch.kubernetes.io/job-name": job["metadata"]["name"]
    }
    host = f"{job['metadata']['name']}-%g.{service}:2222"
    assert read_environment(pod["containers"][0])["HOSTS"] == host
    # JobSet, which runs TrainJobs: <job set>-<replicated job>-<number>-<pod>.<job set>
    objects = read("kubeflow_trainjob.yaml")
    runtime, job = objects["TrainingRuntime"], objects["TrainJob"]
    name = job["metadata"]["name"]
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    trainer = job["spec"]["trainer"]
    host = f"{name}-{replicated['name']}-0-%g.{name}:2222"
    assert read_environment(trainer)["HOSTS"] == host
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]


def read_environment(container):
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("find", WORKERS.values(), ids=WORKERS)
def test_numbers_of_workers_agree(find):
    count, trainer, _ = find()
    assert read_environment(trainer)["WORKERS"] == str(count)


@pytest.mark.slow
@pytest.mark.parametrize("find", WORKERS.values(), ids=WORKERS)
def test_container_commands_train(find, tiny_records, tmp_path):
    """Runs the containers' commands with folders instead of volumes, on loopback."""
    _, trainer, container = find()
    folders = {"/records": tiny_records, "/logs": tmp_path / "logs"}
    assert {each["mountPath"] for each in container["volumeMounts"]} == set(folders)
    arguments = trainer["args"]
    arguments = [each for each in arguments if "crop_size" not in each]
    arguments.append("--train_crop_size=33,33")  # repeated, it would be a list
    for mounted, folder in folders.items():
        arguments = [each.replace(f"={mounted}", f"={folder}") for each in arguments]
    program = tmp_path / "bin/deeplab"
    program.parent.mkdir()
    run = shlex.join([sys.executable, "-m", "deeplab_tf"])
    program.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(EXAMPLE), str(program.parent), os.environ["PATH"]])
    # Ports ending in 0 and 1 instead of hosts.
    port = int(cluster_configs(1)[0]["cluster"]["worker"][0].rpartition(":")[2]) // 10
    environment = read_environment(trainer) | {
        **{"WORKERS": "2", "HOSTS": f"127.0.0.1:{port}%g"},
        **{"PATH": path, "PYTHONPATH": str(ROOT)},
    }
    workers = [
        subprocess.Popen(
            [*trainer["command"], *arguments, *SHORT],
            env=os.environ | environment | {"JOB_COMPLETION_INDEX": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=600)
        assert worker.returncode == 0, errors[-2000:]
    assert (tmp_path / "logs/voc/model.ckpt-2.index").exists()


def replace_all(arguments, replacements):
    for old, new in replacements.items():
        arguments = [each.replace(old, str(new)) for each in arguments]
    return arguments


@pytest.mark.slow
def test_container_commands_serve_input(tiny_records, tmp_path):
    containers, ports = find_containers("input_service.yaml"), find_free_ports(2)
    address = f"localhost:{ports[0]}"
    replacements = {"deeplab-data:5050": address, "=5050": f"={ports[0]}"}
    replacements |= {"=5051": f"={ports[1]}", "$(POD_IP)": "localhost"}
    replacements |= {"=/state": f"={tmp_path}/state"}
    with contextlib.ExitStack() as stack:
        for name in ("dispatcher", "worker"):
            container = containers[name]
            assert container["command"] == ["deeplab-data-worker"]
            command = [sys.executable, "-m", "deeplab_tf.data.worker"]
            command += replace_all(container["args"], replacements)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout.readline()
        command = [sys.executable, "-m", "deeplab_tf", "train", *SHORT]
        command += [f"--dataset_dir={tiny_records}", "--train_crop_size=33,33"]
        command += ["--model_variant=mobilenet_v2", f"--train_logdir={tmp_path}/logs"]
        command += [f"--data_service=grpc://{address}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs/model.ckpt-2.index").exists()


@pytest.mark.slow
def test_container_commands_label_on_dask(
    beam_environment, tiny_export, voc_root, tmp_path
):
    (tmp_path / "photos").mkdir()
    for path in sorted((voc_root / "JPEGImages").iterdir())[:3]:
        shutil.copy(path, tmp_path / "photos")
    containers, [port] = find_containers("label_on_dask.yaml"), find_free_ports(1)
    replacements = {"deeplab-dask:8786": f"localhost:{port}", "=8786": f"={port}"}
    replacements |= {"/models/export": tiny_export, "--nworkers=4": "--nworkers=2"}
    replacements |= {"=/photos": "=photos", "=/labels": "=labels"}
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    with contextlib.ExitStack() as stack:
        for name in ("scheduler", "worker", "predict"):
            program, *words = containers[name]["command"]
            command = [beam_environment / program, *words]
            command += replace_all(containers[name]["args"], replacements)
            if name != "predict":
                # Connections are tried again until the scheduler listens.
                process = subprocess.Popen(command, cwd=tmp_path, env=variables)
                stack.callback(process.wait)
                stack.callback(process.terminate)
        done = wheels.run(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    plain = [beam_environment / "deeplab-predict", f"--model={tiny_export}"]
    plain += ["--images=photos", "--output_dir=expected"]
    assert wheels.run(*plain, folder=tmp_path).returncode == 0
    expected = sorted((tmp_path / "expected").glob("*_label.png"))
    assert len(expected) == 3
    for path in expected:
        assert (tmp_path / "labels" / path.name).read_bytes() == path.read_bytes()
