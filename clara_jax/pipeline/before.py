"""What comes before a run, the data, and right after it, its adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clara_jax.config import RunConfig, parse
from clara_jax.config.parsing import not_negative, positive, require
from clara_jax.convert import (
    ModelFolder,
    export_adapters,
    load_base_tokenizer,
    load_model,
)
from clara_jax.data import is_mixed, mix, read_recipe
from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.pipeline.pages import card
from clara_jax.stages import STAGES
from clara_jax.text import ClaraTokenizer


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


def prepare(settings: Mapping[str, Any], first: RunConfig) -> None:
    """Mix the data of an experiment, unless it is there already.

    Args:
      settings: fields of `MixSettings`.
      first: the run whose backbone reads the data, and cuts them to its documents'
        length.

    Raises:
      ClaraError: the recipe, a source or the folder is wrong.
    """
    given = parse(MixSettings, settings, "mix")
    if not given.recipe:
        if not is_mixed(given.folder):
            raise ClaraError(
                f"config field 'mix.recipe' is empty, and {given.folder} holds no mix; "
                "give a recipe"
            )
        return
    recipe = read_recipe(given.recipe)
    source = first.tokenizer or first.backbone or first.init_from
    tokenizer = ClaraTokenizer(load_base_tokenizer(source), num_memory=1)
    length = first.memory.doc_max_length
    mix(recipe, given.folder, tokenizer, length, data=given.data or None, progress=tqdm)


def export(
    workdir: Path, run: RunConfig, settings: Mapping[str, Any], mix_folder: str = ""
) -> None:
    """Copy a finished run's adapters to ``workdir/adapters/NAME``, in bfloat16.

    `clara_jax.load` reads them; they are what is taken along, or shipped.

    Args:
      workdir: the experiment's folder.
      run: the run.
      settings: fields of `ReportSettings`, for what the card says.
      mix_folder: of its data, whose sources and licences the card names.
    """
    folder = workdir / "adapters" / Path(run.workdir).name
    made = Path(run.workdir) / "summary.json"
    if folder.exists() and folder.stat().st_mtime >= made.stat().st_mtime:
        return
    model = load_model(run.workdir)
    if model.clara is None or model.adapters is None:
        return  # a base of its own
    backbone = model.clara.backbone
    if not STAGES[run.stage].compresses(run):
        # The others are those that it started from, and read nothing here.
        own = {name: model.adapters[name] for name in ("generator", "memory")}
        model = dataclasses.replace(model, adapters=own)
    base = parse(ReportSettings, settings, "report").base or run.backbone or backbone
    text = describe(workdir, run, settings, mix_folder, model=model)
    export_adapters(folder, model, base, text)


def describe(
    workdir: Path,
    run: RunConfig,
    settings: Mapping[str, Any],
    mix_folder: str,
    scores: str = "",
    model: ModelFolder | None = None,
) -> str:
    """Return the card of a run's adapters; see `card`.

    Args:
      workdir, run, settings, mix_folder: as of `export`.
      scores: Markdown with what was measured, if anything was.
      model: the run's result, if it has been read.
    """
    given = parse(ReportSettings, settings, "report")
    model = model or load_model(run.workdir)
    assert model.clara is not None
    base = given.base or run.backbone or model.clara.backbone
    summary = read_json(Path(run.workdir) / "summary.json")
    manifest = read_json(Path(mix_folder) / "manifest.json") if mix_folder else {}
    name = given.name or workdir.name
    if not STAGES[run.stage].retrieves(run):
        name += f"-{Path(run.workdir).name}"
    return card(name, base, model, summary, manifest, scores)
