#!/usr/bin/env python3
"""Train on multi-host TPU slices of a GKE cluster, as a JobSet.

    launch/gke.py run --name clara --image IMAGE --claim clara -- COMMAND ...
    launch/gke.py logs|status|delete --name clara

``run`` fills in launch/gke/jobset.yaml and hands it to kubectl. The cluster needs
JobSet (https://jobset.sigs.k8s.io), node pools of the slices asked for, and a shared
volume (launch/gke/volume.yaml). Pods that were told to stop (exit status 75) or lost
their machine start again, all together, without limit.

Exit status: that of kubectl; 2: wrong arguments. ``--dry-run`` prints the commands.
"""

import argparse
import json
import math
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

TEMPLATE = Path(__file__).resolve().parent / "gke" / "jobset.yaml"

CHIPS = {
    "tpu-v5-lite-podslice": 4,
    "tpu-v6e-slice": 4,
    "tpu-v5p-slice": 4,
    "tpu-v4-podslice": 4,
}
"""TPUs as GKE calls them, and the chips on each host of a slice of several hosts."""

SPOT = "cloud.google.com/gke-spot"


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with status 2."""
        self.exit(2, f"error: {message}; launch/gke.py --help explains\n")


def hosts(accelerator: str, topology: str) -> int:
    """Hosts of one slice.

    Raises:
      ValueError: there is no such TPU, or its hosts do not fill the topology.
    """
    if accelerator not in CHIPS:
        raise ValueError(
            f"--accelerator {accelerator} is not known; there are {', '.join(CHIPS)}"
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise ValueError(f"--topology must be like 4x4 or 2x2x4, not '{topology}'")
    chips = math.prod(int(side) for side in topology.split("x"))
    if chips % CHIPS[accelerator] or chips == CHIPS[accelerator]:
        raise ValueError(
            f"--topology {topology} of {accelerator} is not a slice of several hosts "
            f"with {CHIPS[accelerator]} chips each"
        )
    return chips // CHIPS[accelerator]


def manifest(options: argparse.Namespace, command: Sequence[str]) -> str:
    """The JobSet as YAML.

    Args:
      options: of ``run``. command: what each pod runs.

    Raises:
      ValueError: see `hosts`; or a name that Kubernetes would refuse.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
        raise ValueError(
            f"--name must be up to 40 small letters, digits, '-': not '{options.name}'"
        )
    count = hosts(options.accelerator, options.topology)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": options.accelerator,
        "cloud.google.com/gke-tpu-topology": options.topology,
    }
    tolerations = []
    if options.spot:
        selector[SPOT] = "true"
        tolerations = [{"key": SPOT, "value": "true", "effect": "NoSchedule"}]
    # JSON is YAML: whatever is in the words, they come out as they went in.
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=options.name,
        namespace=options.namespace,
        slices=options.slices,
        hosts=count,
        chips=CHIPS[options.accelerator],
        restarts=options.restarts,
        grace=options.grace,
        image=json.dumps(options.image),
        claim=json.dumps(options.claim),
        mount_at=json.dumps(options.mount_at),
        node_selector=json.dumps(selector),
        tolerations=json.dumps(tolerations),
        command=json.dumps(list(command)),
    )


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], Parser]:
    """Read the command line: options, and the command after ``--``."""
    parser = Parser(
        prog="launch/gke.py",
        description="Train on multi-host TPU slices of a GKE cluster, as a JobSet.",
        usage="%(prog)s {run,logs,status,delete} --name N [options] [-- COMMAND ...]",
    )
    add = parser.add_argument
    add("action", choices=("run", "logs", "status", "delete"))
    add("--name", required=True, help="of the JobSet")
    add("--namespace", default="default")
    add("--image", help="built with launch/docker/tpu.Dockerfile and pushed")
    add("--accelerator", default="tpu-v5-lite-podslice", metavar="TPU")
    add("--topology", default="4x4", help="chips of one slice (4x4)")
    add("--slices", type=int, default=1, metavar="N")
    add("--spot", action="store_true", help="on spot nodes")
    add("--claim", default="clara", help="shared volume (clara)")
    add("--mount-at", default="/mnt/clara", metavar="DIR")
    add("--restarts", type=int, default=5, help="after failures that are no preemption")
    add("--grace", type=int, default=300, help="seconds to save in (300)")
    add("--dry-run", action="store_true", help="print the commands")
    given = list(arguments)
    cut = given.index("--") if "--" in given else len(given)
    own, command = given[:cut], given[cut + 1 :]
    options = parser.parse_args(own)
    if options.action == "run" and not command:
        parser.error("no command; give it after --")
    if options.action == "run" and not options.image:
        parser.error("--image is needed")
    if options.slices < 1 or options.restarts < 0 or options.grace < 0:
        parser.error("--slices must be at least 1, --restarts and --grace at least 0")
    return options, command, parser


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    options, command, parser = parse(arguments)
    text = ""
    kubectl = ["kubectl", f"--namespace={options.namespace}"]
    if options.action == "run":
        try:
            text = manifest(options, command)
        except ValueError as error:
            parser.error(str(error))
        kubectl += ["apply", "--filename=-"]
    elif options.action == "logs":
        # Process 0: the first pod of the first slice.
        first = (
            "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        )
        kubectl += ["logs", "--follow", "--tail=100"]
        kubectl += [f"--selector=app={options.name},{first}"]
    elif options.action == "status":
        kubectl += ["get", "jobsets,pods", f"--selector=app={options.name}"]
    else:
        kubectl += ["delete", "jobset", options.name]
    if options.dry_run:
        print(shlex.join(kubectl), end=f" <<'EOF'\n{text}EOF\n" if text else "\n")
        return 0
    try:
        return subprocess.run(
            kubectl, input=text if text else None, text=True, check=False
        ).returncode
    except FileNotFoundError:
        print("error: kubectl is not installed", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
