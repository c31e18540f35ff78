"""CLaRa in JAX: retrieval and generation in one continuous space.

Documents are compressed once into vectors of the model's own width; a question picks
among them and the answer is generated from the vectors alone. See the README for the
commands. As a library, by what you want to do:

* settings: `RunConfig`, `ModelConfig`, `LoraConfig`, `MemoryConfig`,
  `SelectionConfig`; all bad input raises `ClaraError`
* read a model: `load_model` (Hugging Face, GGUF, model and run folders)
* answer questions: `load` (gives a `Clara`), `AnswerConfig`, `Sampling`, `Session`,
  `Document`
* search document vectors on disk: `Store`, `clara_jax.search`
* the method, as pure functions: `Network`, `cosine_scores`, `soft_topk`, with `Tokens`
  and `Batch`; the backbone is `Transformer`
* data: `open_records`, `make_batches`, `ClaraTokenizer`
* train: `STAGES`, `Stage`, `make_loss`, `make_train_step`, `fit`; where arrays lie:
  `make_mesh`
* measure: `score_answers`, `score_retrieval`
* test your own: `clara_jax.testing`

Nothing is imported before it is asked for.
"""

import importlib
import os
import signal
import sys
from typing import Any

__version__ = "0.1.0"

# transformers would advise at every start to install PyTorch; nothing here needs it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# Lance would warn of every store that is new.
os.environ.setdefault("LANCE_LOG", "error")

if sys.argv[:1] == ["-m"] and any(x.startswith("clara_jax.") for x in sys.orig_argv):
    # A command that is still importing has nothing to save; see `commands.start`.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))

_ROOMS = {
    "answer": ("Session",),
    "compress": (),
    "clara": ("Batch", "Network", "Tokens", "cosine_scores", "soft_topk"),
    "config": (
        "LoraConfig",
        "MemoryConfig",
        "ModelConfig",
        "RunConfig",
        "SelectionConfig",
    ),
    "convert": ("load_model",),
    "data": ("make_batches", "open_records"),
    "documents": ("Document",),
    "errors": ("ClaraError",),
    "evaluate": ("score_answers", "score_retrieval"),
    "generate": ("AnswerConfig", "Clara", "Sampling"),
    "loading": ("load",),
    "model": ("Transformer",),
    "pipeline": (),
    "plan": (),
    "quickstart": (),
    "search": ("Store",),
    "sharding": ("make_mesh",),
    "stages": ("STAGES", "Stage", "make_loss"),
    "testing": (),
    "text": ("ClaraTokenizer",),
    "train": ("fit", "make_train_step"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
