"""`launch/tpu_vm.sh`, with a gcloud that plays the TPU service (programs/gcloud.py)."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"
SCRIPT = str(ROOT / "launch" / "tpu_vm.sh")
WHERE = ("--name=clara", "--zone=us-west4-a")
GRANTED = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
TRAIN = ("python", str(PROGRAMS / "steps.py"))


class Cloud:
    """A folder that the fake gcloud lives in."""

    def __init__(self, folder: Path):
        self.folder = folder
        tools = folder / "bin"
        tools.mkdir()
        gcloud = tools / "gcloud"
        gcloud.write_text(
            f'#!/bin/sh\nexec {sys.executable} {PROGRAMS / "gcloud.py"} "$@"\n'
        )
        gcloud.chmod(0o755)
        self.path = f"{tools}:{os.environ['PATH']}"

    def grant(self, *lives: str) -> None:
        (self.folder / "lives").write_text("\n".join(lives))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", SCRIPT, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "CLOUD": str(self.folder), "PATH": self.path},
            timeout=600,
            check=False,
        )

    def all(self, *options_and_steps: str) -> subprocess.CompletedProcess[str]:
        options = [word for word in options_and_steps if word.startswith("--")]
        steps = [word for word in options_and_steps if word not in options]
        return self("all", *WHERE, "--poll=0", *options, "--", *TRAIN, *steps)

    def calls(self) -> list[list[str]]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def verbs(self) -> list[str]:
        """Without the looks: what was created, copied, deleted."""
        told = [call[3] for call in self.calls()]
        return [verb for verb in told if verb in ("create", "scp", "delete")]


@pytest.fixture
def cloud(tmp_path):
    one = Cloud(tmp_path)
    yield one
    if (tmp_path / "life.json").exists():
        one("delete", *WHERE)


def test_all_waits_runs_follows_and_deletes(cloud):
    cloud.grant(GRANTED)
    done = cloud.all()
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "step" in line][-1] == "step 4"
    told = [line for line in done.stderr.splitlines() if line.startswith("launch: ")]
    for state in (*GRANTED.split(), "done"):
        assert f"launch: clara: {state}" in told
    assert cloud.verbs() == ["create", "scp", "delete"]
    assert (cloud.folder / "share" / "step1").read_text() == "5"


def test_a_preempted_run_goes_on_on_new_machines(cloud):
    cloud.grant(GRANTED, GRANTED)
    done = cloud.all("3=preempt")
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith("step")]
    assert shown[-2:] == ["step 3", "step 4"]
    assert "launch: clara: start 2" in done.stderr
    assert cloud.verbs() == ["create", "scp", "delete", "create", "scp", "delete"]


def test_machines_that_go_before_they_are_ready_are_asked_for_again(cloud):
    cloud.grant("WAITING_FOR_RESOURCES SUSPENDED", "FAILED", GRANTED)
    done = cloud.all()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == ["create", "delete"] * 2 + ["create", "scp", "delete"]


def test_three_requests_that_fail_are_enough(cloud):
    cloud.grant("FAILED", "CREATING FAILED", "FAILED", GRANTED)
    done = cloud.all()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no capacity" in done.stderr
    assert "error: three requests failed in a row" in done.stderr


@pytest.mark.parametrize("status", [75, 134])
def test_a_run_that_was_stopped_goes_on_on_the_same_machines(cloud, status):
    cloud.grant(GRANTED)
    done = cloud.all("--keep", f"2={status}")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == ["create", "scp", "scp"]
    assert (cloud.folder / "share" / "step0").read_text() == "5"


def test_restarts_have_an_end(cloud):
    cloud.grant(GRANTED)
    done = cloud.all("--restarts=1", "2=75", "3=75")
    assert done.returncode == 75
    assert "preempted after 1 restarts; start the same command again" in done.stderr


def test_a_failure_is_passed_on_and_the_machines_are_left(cloud):
    cloud.grant(GRANTED)
    done = cloud.all("2=9")
    assert done.returncode == 9
    assert "the run ended with status 9; its machines are still there" in done.stderr
    assert cloud.verbs() == ["create", "scp"]
    # Mended, the same command goes on there.
    assert cloud.all().returncode == 0
    assert cloud.verbs() == ["create", "scp", "scp", "delete"]


def test_a_connection_that_breaks_ends_nothing(cloud):
    cloud.grant(GRANTED)
    done = cloud.all("1=slow", "2=deaf")
    assert done.returncode == 0, done.stderr
    assert "launch: clara: no word from the workers" in done.stderr
    assert cloud.verbs() == ["create", "scp", "delete"]


def test_stopped_with_ctrl_c_it_goes_on_watching(cloud):
    cloud.grant(GRANTED)
    arguments = ("all", *WHERE, "--poll=0", "--", *TRAIN, "1=pause")

    def start():
        process = subprocess.Popen(
            ["bash", SCRIPT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "CLOUD": str(cloud.folder), "PATH": cloud.path},
            start_new_session=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line == "step 1\n":
                break
        return process

    first = start()
    # To the whole group, as a terminal does.
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(timeout=300)
    first.stdout.close()
    second = start()
    (cloud.folder / "share" / "go").touch()
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0 and "step 4" in out
    assert cloud.verbs() == ["create", "scp", "delete"]


def test_each_step_alone(cloud):
    cloud.grant(GRANTED)
    for step in ("create", "wait", "copy", "install"):
        done = cloud(step, *WHERE, "--poll=0")
        assert done.returncode == 0, done.stderr
    assert cloud("run", *WHERE, "--", *TRAIN).returncode == 0
    assert "step 4" in cloud("logs", *WHERE).stdout
    assert cloud("status", *WHERE).stdout == "exited 0\nexited 0\n"
    assert cloud("stop", *WHERE).returncode == 0
    assert cloud("delete", *WHERE).returncode == 0
    assert cloud("wait", *WHERE, "--poll=0").returncode == 1


DRY = """\
gcloud compute tpus queued-resources create clara --node-id=clara \
--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot \
--network=mine --zone=us-west4-a --project=ours
gcloud compute tpus queued-resources describe clara '--format=value(state.state)' \
--zone=us-west4-a --project=ours
PACK
gcloud compute tpus tpu-vm scp /tmp/clara/clara_jax.tar.gz clara:clara_jax.tar.gz \
--worker=all --zone=us-west4-a --project=ours
SSH --worker=all '--command=mkdir -p clara_jax && tar -xzf clara_jax.tar.gz \
-C clara_jax' KEEP
SSH --worker=all '--command=bash clara_jax/launch/tpu_worker.sh install \
--bucket data --mount-at /mnt/clara' KEEP
SSH --worker=all '--command=bash clara_jax/launch/tpu_worker.sh start -- \
python -m clara_jax.train --config=configs/tiny.py' KEEP
SSH --worker=0 '--command=bash clara_jax/launch/tpu_worker.sh follow --lines 100' KEEP
SSH --worker=all '--command=bash clara_jax/launch/tpu_worker.sh status' KEEP
gcloud compute tpus queued-resources delete clara --force --quiet \
--zone=us-west4-a --project=ours
"""
SHORT = {
    "SSH": "gcloud compute tpus tpu-vm ssh clara",
    "KEEP": "--ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4 "
    "--zone=us-west4-a --project=ours",
}


def dry(*options: str, script: str = SCRIPT) -> str:
    done = subprocess.run(
        ["bash", script, "all", *WHERE, "--dry-run", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PACK = {
    "clone": "git -C ROOT archive --format=tar.gz "
    "--output=/tmp/clara/clara_jax.tar.gz HEAD",
    "folder": "tar -czf /tmp/clara/clara_jax.tar.gz -C ROOT --exclude=__pycache__ "
    "setup.py pyproject.toml README.md clara_jax configs launch",
}
TRAINING = ("--", "python", "-m", "clara_jax.train", "--config=configs/tiny.py")


@pytest.mark.parametrize("kind", PACK)
def test_dry_run_prints_the_commands(kind, tmp_path):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    if kind == "clone":
        (tmp_path / ".git").mkdir()
    expected = DRY.replace("PACK", PACK[kind]).replace("ROOT", str(tmp_path))
    for short, long in SHORT.items():
        expected = expected.replace(short, long)
    options = ("--type", "v6e-16", "--spot", "--create-flag=--network=mine")
    found = dry(
        *(*options, "--bucket=data", "--project=ours", *TRAINING),
        script=str(tmp_path / "launch" / "tpu_vm.sh"),
    )
    assert found == expected


def test_a_repository_is_cloned_instead():
    told = dry("--repo=https://example.org/it.git", "--ref=v1", "--keep", *TRAINING)
    assert "git clone --quiet https://example.org/it.git clara_jax" in told
    assert "fetch --quiet origin v1" in told
    assert "archive" not in told
    assert "delete" not in told


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.slow
def test_gcloud_itself_knows_every_flag(tmp_path):
    commands = dry("--spot", "--bucket=data", "--project=ours", *TRAINING)
    commands += dry("--reserved", "--nfs=10.0.0.2:/vol", "--project=ours", *TRAINING)
    lines = commands.splitlines()
    listed = sorted({line for line in lines if line.startswith("gcloud")})
    path = tmp_path / "commands.json"
    path.write_text(json.dumps([{"command_string": line} for line in listed]))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={path}"],
        capture_output=True,
        text=True,
        env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)},
        check=True,
    )
    answers = json.loads(done.stdout)
    assert len(answers) == len(listed)
    for answer in answers:
        assert answer["success"], answer["error_message"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fly"], "no command 'fly'"),
        (["create", "--zone=z"], "--name is needed"),
        (["create", "--name=n"], "--zone is needed"),
        (["create", *WHERE, "--speed=9"], "no option '--speed'"),
        (
            ["create", *WHERE, "--type=abacus-8"],
            "no image is known for --type abacus-8",
        ),
        (["create", *WHERE, "--spot", "--reserved"], "--spot or --reserved, not both"),
        (["all", *WHERE], "all needs -- COMMAND"),
        (["all", *WHERE, "--bucket=b", "--nfs=h:/s", "--", "x"], "--bucket or --nfs"),
        (["wait", *WHERE, "--poll=soon"], "--poll needs a whole number, not 'soon'"),
        (["wait", "--name"], "--name needs a value"),
    ],
)
def test_mistakes_are_told_in_one_line(cloud, arguments, told):
    done = cloud(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_lists_every_option(cloud):
    told = cloud("--help").stdout
    source = Path(SCRIPT).read_text()
    for line in source.splitlines():
        word = line.strip().split(")")[0]
        if word.startswith("--") and word.strip("-").isalpha():
            assert word in told
    assert told.startswith("Train on a TPU VM")
