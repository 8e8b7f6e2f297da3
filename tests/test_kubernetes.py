"""The training examples for Kubernetes are valid, and their commands train."""

import os
import shlex
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from loopback import cluster_configs

EXAMPLE = ROOT / "examples/kubernetes"
SHORT = (
    *("--depth_multiplier=0.1", "--aspp_convs_filters=16"),
    *("--train_batch_size=4", "--training_number_of_steps=2", "--batch_norm=freeze"),
)


def read(name):
    """Returns the objects of a manifest by kind."""
    objects = yaml.safe_load_all((EXAMPLE / name).read_text())
    return {each["kind"]: each for each in objects}


def find_job():
    job = read("train_job.yaml")["Job"]["spec"]
    pod = job["template"]["spec"]
    return job["completions"], pod["containers"][0], pod["containers"][0]


def find_trainjob():
    found = read("trainjob.yaml")
    trainer = found["TrainJob"]["spec"]["trainer"]
    [job] = found["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    return trainer["numNodes"], trainer, container


WORKERS = {"train_job.yaml": find_job, "trainjob.yaml": find_trainjob}


def test_job_matches_the_published_schema():
    pytest.importorskip("kubernetes_validate")
    path = EXAMPLE / "train_job.yaml"
    command = (sys.executable, "-m", "kubernetes_validate", "--strict", path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["TrainingRuntime", "TrainJob"])
def test_trainjob_matches_the_published_models(kind):
    models = pytest.importorskip("kubeflow_trainer_api.models")
    model = getattr(models, f"TrainerV1alpha1{kind}")
    found = read("trainjob.yaml")[kind]
    # The models ignore fields that they do not know.
    assert drop_none(model.from_dict(found).to_dict()) == found


def drop_none(value):
    if isinstance(value, dict):
        return {k: drop_none(v) for k, v in value.items() if v is not None}
    return [drop_none(v) for v in value] if isinstance(value, list) else value


def test_pods_have_the_addresses_in_hosts():
    objects = read("train_job.yaml")
    job, service = objects["Job"], objects["Service"]["metadata"]["name"]
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service
    assert objects["Service"]["spec"]["selector"] == {
        "batch.kubernetes.io/job-name": job["metadata"]["name"]
    }
    host = f"{job['metadata']['name']}-%g.{service}:2222"
    assert read_environment(pod["containers"][0])["HOSTS"] == host
    # JobSet, which runs TrainJobs: <job set>-<replicated job>-<number>-<pod>.<job set>
    objects = read("trainjob.yaml")
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
