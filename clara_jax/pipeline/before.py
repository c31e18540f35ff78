"""What comes before a run, its data, and right after it: its adapters with a card."""

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
from clara_jax.stages import STAGES
from clara_jax.text import ClaraTokenizer


@dataclasses.dataclass(frozen=True)
class MixSettings:
    """The data of an experiment; the config's group ``mix``.

    Attributes:
      folder: where the mix is, or is made.
      recipe: a TOML file, see `clara_jax.data.read_recipe`; empty takes a mix that was
        made before as it is, without its sources.
      data: the folder that the recipe's paths are below; empty takes the recipe's.
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
      batch_size: rows read together.
      max_new_tokens: longest answer.
      seed: of the bootstrap.
      name: what the cards of exported adapters call the model; empty takes the
        folder's name.
      base: what they call its backbone; empty takes what it was read from.
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
    """Mix the data of an experiment, unless they are there already.

    Args:
      settings: fields of `MixSettings`.
      first: the run by whose tokenizer and document length the data are cut.

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

    With a `card`: `settings` are fields of `ReportSettings`.
    """
    folder = workdir / "adapters" / Path(run.workdir).name
    made = Path(run.workdir) / "summary.json"
    if folder.exists() and folder.stat().st_mtime >= made.stat().st_mtime:
        return
    model = load_model(run.workdir)
    if model.clara is None or model.adapters is None:
        return  # a base of its own
    given = parse(ReportSettings, settings, "report")
    base = given.base or run.backbone or model.clara.backbone
    if not STAGES[run.stage].compresses(run):
        # The others are those that it started from, and read nothing here.
        own = {name: model.adapters[name] for name in ("generator", "memory")}
        model = dataclasses.replace(model, adapters=own)
    text = card(workdir, run, given, mix_folder, model)
    export_adapters(folder, model, base, text)


_CARD = Path(__file__).with_name("card.md").read_text(encoding="utf-8")

_READS = """\
A document of up to {clara.memory.doc_max_length} tokens becomes \
{clara.memory.num_memory} vectors ({clara.memory.compression_rate}x).

    clara = clara_jax.load("{name}")"""

_TEXT = "A baseline: it reads documents as text, or none at all."


def card(
    workdir: Path,
    run: RunConfig,
    settings: ReportSettings,
    mix_folder: str,
    model: ModelFolder,
    scores: str = "",
) -> str:
    """Return the card of a run's adapters as Markdown.

    Args:
      workdir: the experiment's folder.
      run: that trained them.
      settings: what they and their backbone are called.
      mix_folder: of its data, whose sources and licences the card names; may be empty.
      model: the adapters, with their settings.
      scores: Markdown with what was measured, if anything was.
    """
    clara = model.clara
    assert clara is not None and model.adapters is not None
    summary = read_json(Path(run.workdir) / "summary.json")
    manifest = read_json(Path(mix_folder) / "manifest.json") if mix_folder else {}
    name, cut = settings.name or workdir.name, summary.get("cut")
    if not STAGES[run.stage].retrieves(run):
        name += f"-{Path(run.workdir).name}"
    rows = [
        f"- {source}: {about['licence']}"
        + (f" ({about['origin']})" if about.get("origin") else "")
        for source, about in manifest.get("sources", {}).items()
    ]
    reads = _READS if "compressor" in model.adapters else _TEXT
    return _CARD.replace("{reads}", reads).format(
        name=name,
        base=settings.base or run.backbone or clara.backbone,
        clara=clara,
        roles=", ".join(sorted(set(model.adapters) - {"memory"})),
        run=summary,
        loss=f"{summary['final'].get('loss', float('nan')):.3f}",
        cut=f" Cut by its deadline, of {cut['of']:,} steps." if cut else "",
        scores=f"\n## Scores\n\n{scores}" if scores else "",
        data="\n".join(rows) + "\n" if rows else "Not recorded.\n",
    )
