"""Settings of an experiment's data and of its report."""

from __future__ import annotations

import dataclasses

from clara_jax.config.parsing import not_negative, positive, require


@dataclasses.dataclass(frozen=True)
class MixSettings:
    """The data of an experiment; the config's group ``mix``.

    Attributes:
      recipe: a TOML file, see `clara_jax.data.read_recipe`; empty takes a mix that was
        made before as it is, without its sources.
      data: the folder that the recipe's paths are below; empty takes the recipe's.
      folder: where the mix is, or is made.
    """

    folder: str
    recipe: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        require(bool(self.folder), "mix.folder", "is empty; give a path")


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """What is measured when all runs are done; the config's group ``report``.

    Attributes:
      questions: held-out ones, evenly from all sources; fewer where time is over.
      corpus: passages of the mix that are searched through, held-out ones first; 0
        takes all.
      batch_size: rows read together. max_new_tokens: longest answer.
      seed: of the bootstrap.
      name, base: what the cards of exported adapters call the model and its backbone;
        empty takes the folder's name, and what the backbone was read from.
    """

    questions: int = 1200
    corpus: int = 0
    batch_size: int = 64
    max_new_tokens: int = 24
    seed: int = 0
    name: str = ""
    base: str = ""

    def __post_init__(self) -> None:
        positive("report", self, "questions", "batch_size", "max_new_tokens")
        not_negative("report", self, "corpus", "seed")
