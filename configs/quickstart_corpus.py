"""The quickstart's stage 3 again, searching all documents in place of 20 given ones.

In ``configs/quickstart.py`` every question comes with 20 candidates. Here it comes with
none: in each step the 20 documents of the whole invented encyclopedia (784, those of
the held-out people among them) that the question encoder finds nearest compete for it,
and the loss on the answer alone teaches it to search. ``:given`` trains as the
quickstart does and measures the same search over all documents, to compare with.

Source: our own; the paper trains with given candidates.
Command: python -m clara_jax.train --config=configs/quickstart_corpus.py
    It needs what ``--config=configs/quickstart.py`` leaves in runs/quickstart, and all
    documents compressed by its second stage: python -m clara_jax.compress
    --model runs/quickstart/instruct --corpus runs/quickstart/data/corpus.jsonl
    --store runs/quickstart/store
Hardware: two CPU cores, 2 GiB, no network. Time: 3 minutes.
Score (three seeds): Recall@1 over all documents from 0.10 to 0.98, 0.98 and 1.00, exact
    match of answers from 0.14 to 0.96 to 0.99. ``:given``: 0.98 to 0.99, and 0.98.
"""

from ml_collections import ConfigDict

from clara_jax.errors import ClaraError
from configs import quickstart

FROM = "runs/quickstart"


def get_config(arg: str = "corpus") -> ConfigDict:
    """Candidates from ``corpus``, or ``given``."""
    if arg not in ("corpus", "given"):
        raise ClaraError(f"candidates are corpus or given, not '{arg}'")
    config = quickstart.get_config().unlock()
    last = dict(config.stages[-1])
    del last["name"]
    config.update(last)
    config.stages, config.quickstart, config.backbone = (), ConfigDict(), ""
    config.workdir = f"runs/quickstart_{arg}"
    config.init_from = f"{FROM}/instruct"
    config.data.train = (f"{FROM}/data/end_to_end.jsonl",)
    config.data.eval = (f"{FROM}/data/held_out.jsonl",)
    config.store = f"{FROM}/store"
    config.candidates = arg
    return config.lock()
