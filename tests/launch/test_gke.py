"""`launch/gke.py` and its manifests, against the schemas of Kubernetes and JobSet.

JobSet's schema comes as the models that its project generates for Kubeflow; Kubernetes'
own as published. Both are in the extra ``dev``.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = str(ROOT / "launch" / "gke.py")
TRAIN = ("python", "-m", "clara_jax.train", "--config=configs/tiny.py:it's: {a}")
RUN = ("run", "--name=clara", "--image=eu.gcr.io/ours/clara:1")

yaml = pytest.importorskip("yaml", reason="needs the extra dev")


def gke(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def jobset(*options: str) -> dict[str, Any]:
    done = gke(*RUN, *options, "--dry-run", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "kubectl --namespace=default apply --filename=- <<'EOF'"
    assert lines.pop() == "EOF"
    return yaml.safe_load("\n".join(lines))


def kubernetes_refuses(resource: dict[str, Any]) -> str:
    """Why Kubernetes would refuse it; empty when it would not."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    try:
        kubernetes.validate(resource, kubernetes.latest_version(), strict=True)
    except kubernetes.ValidationError as error:
        return str(error)
    return ""


def jobset_refuses(resource: dict[str, Any]) -> str:
    """What JobSet's own types would not take; empty when they take everything."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    return dropped(resource, models.JobsetV1alpha2JobSet.from_dict(resource).to_dict())


def dropped(given: Any, kept: Any, at: str = "") -> str:
    """The first field that reading left out, as not known; defaults may be added."""
    if isinstance(given, dict) and isinstance(kept, dict):
        pairs = [(key, given[key], kept.get(key)) for key in given]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = list(zip(range(len(given)), given, kept, strict=True))
    else:
        return "" if given == kept else at
    found = (dropped(one, other, f"{at}.{key}") for key, one, other in pairs)
    return next((path for path in found if path), "")


def job(resource: dict[str, Any]) -> dict[str, Any]:
    """The first Job of a JobSet, as the JobSet controller would make it."""
    spec = resource["spec"]["replicatedJobs"][0]["template"]["spec"]
    kind = {"apiVersion": "batch/v1", "kind": "Job"}
    return {**kind, "metadata": {"name": "clara-slice-0"}, "spec": spec}


@pytest.mark.parametrize("options", [(), ("--spot", "--slices=2", "--topology=4x8")])
def test_the_manifest_validates(options):
    made = jobset(*options)
    assert jobset_refuses(made) == ""
    assert kubernetes_refuses(job(made)) == ""


def test_the_schemas_refuse_what_is_wrong():
    made = jobset()
    made["spec"]["failurePolicy"]["maxRestart"] = 1
    assert jobset_refuses(made) == ".spec.failurePolicy.maxRestart"
    made = jobset()
    template = made["spec"]["replicatedJobs"][0]["template"]
    template["spec"]["template"]["spec"]["restartsPolicy"] = "Never"
    assert kubernetes_refuses(job(made))


def test_the_volume_validates_and_is_the_one_that_is_mounted():
    text = (ROOT / "launch" / "gke" / "volume.yaml").read_text()
    volume = yaml.safe_load(text)
    assert kubernetes_refuses(volume) == ""
    pods = job(jobset())["spec"]["template"]["spec"]
    claim = pods["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == volume["metadata"]["name"]


def test_words_chips_and_hosts_come_out_as_they_went_in():
    made = jobset("--topology=4x8", "--slices=3", "--spot", "--restarts=9")
    spec = job(made)["spec"]
    pods = spec["template"]["spec"]
    (train,) = pods["containers"]
    assert train["command"] == list(TRAIN)
    assert train["resources"]["limits"] == {"google.com/tpu": 4}
    assert (spec["parallelism"], spec["completions"]) == (8, 8)
    assert made["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 9
    assert pods["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }


def test_75_and_lost_machines_start_again_without_limit():
    made = jobset()
    spec = job(made)["spec"]
    # What Kubernetes demands of a Job with such a policy.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    codes, lost = spec["podFailurePolicy"]["rules"]
    (train,) = spec["template"]["spec"]["containers"]
    assert codes["onExitCodes"]["values"] == [75]
    assert codes["onExitCodes"]["containerName"] == train["name"]
    assert lost["onPodConditions"][0]["type"] == "DisruptionTarget"
    (rule,) = made["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_run_hands_the_manifest_to_kubectl(tmp_path):
    fake = tmp_path / "kubectl"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/said\ncat >{tmp_path}/got\nexit 3'
    )
    fake.chmod(0o755)
    done = gke(*RUN, "--", *TRAIN, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 3
    said = (tmp_path / "said").read_text()
    assert said == "--namespace=default apply --filename=-\n"
    assert yaml.safe_load((tmp_path / "got").read_text()) == jobset()


def test_the_other_commands():
    where = ("--name=clara", "--namespace=ours", "--dry-run")
    at = "kubectl --namespace=ours"
    assert (
        gke("status", *where).stdout == f"{at} get jobsets,pods --selector=app=clara\n"
    )
    assert gke("delete", *where).stdout == f"{at} delete jobset clara\n"
    assert gke("logs", *where).stdout == (
        f"{at} logs --follow --tail=100 --selector=app=clara,"
        "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--name=x", "--image=i"], "no command; give it after --"),
        (["run", "--name=x", "--", "y"], "--image is needed"),
        (
            ["run", "--name=X_1", "--image=i", "--", "y"],
            "--name must be up to 40 small",
        ),
        ([*RUN, "--topology=four", "--", "y"], "--topology must be like 4x4"),
        ([*RUN, "--topology=2x2", "--", "y"], "not a slice of several hosts"),
        (
            [*RUN, "--accelerator=abacus", "--", "y"],
            "--accelerator abacus is not known",
        ),
        ([*RUN, "--slices=0", "--", "y"], "--slices must be at least 1"),
        (["walk", "--name=x"], "invalid choice: 'walk'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, told):
    done = gke(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_kubectl(tmp_path):
    done = gke("status", "--name=x", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "error: kubectl is not installed\n")
