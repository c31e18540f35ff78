"""Stands for training on a pod: five steps, kept in the shared folder $CLOUD/share.

Arguments: STEP=ACTION, done once: ``preempt`` (the machines die), ``deaf`` (ssh fails
for a while), ``slow``, ``pause`` (until there is a file ``go`` in that folder), or an
exit status.
"""

import os
import sys
import time
from pathlib import Path

cloud, worker = Path(os.environ["CLOUD"]), os.environ["WORKER"]
share = cloud / "share"
share.mkdir(exist_ok=True)
at = share / f"step{worker}"
actions = dict(word.split("=") for word in sys.argv[1:])
for step in range(int(at.read_text()) if at.exists() else 0, 5):
    print(f"step {step}", flush=True)
    action, done = actions.get(str(step)), share / f"done{worker}{step}"
    if action and not done.exists():
        done.touch()
        if action == "preempt":
            (cloud / "preempt").touch()
            time.sleep(60)
        elif action == "deaf":
            (cloud / "deaf").write_text("4")
        elif action == "slow":
            time.sleep(3)
        elif action == "pause":
            while not (share / "go").exists():
                time.sleep(0.05)
        else:
            sys.exit(int(action))
    at.write_text(str(step + 1))
