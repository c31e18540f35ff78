"""Files of the invented encyclopedia, made before a run and never changed after."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clara_jax.checkpoint import replace_folder, write_error
from clara_jax.config import parse
from clara_jax.errors import ClaraError
from clara_jax.synthesize import records
from clara_jax.synthesize.shipped import random_base, write_base
from clara_jax.synthesize.world import Entry

SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is written, and how much of it.

    Attributes:
      records: ``stages`` writes records of scp, instruct and end_to_end, held-out ones
        included, the held-out documents and, as ``corpus.jsonl``, all that questions of
        end_to_end are asked about; ``pretraining`` writes text for a base, and an
        untrained one; ``encyclopedia`` writes every entry once, with all its questions
        and a paraphrase, as sources of a mix have them.
      seed: of everything.
      pretraining, scp, instruct, end_to_end: numbers of training records; 0 for
        end_to_end asks for every fact of the encyclopedia once.
      held_out: held-out questions for each of the stages.
      candidates: C, documents of an end_to_end record.
      alike: how many of the wrong ones share half of the name.
      documents: documents of an instruct record, the right one first.
    """

    records: str = "stages"
    seed: int = 0
    pretraining: int = 20000
    scp: int = 12000
    instruct: int = 6000
    end_to_end: int = 0
    held_out: int = 200
    candidates: int = 20
    alike: int = 16
    documents: int = 1

    def __post_init__(self) -> None:
        if self.records not in ("stages", "pretraining", "encyclopedia"):
            raise ClaraError(
                f"config field 'synthesize.records' is '{self.records}', but must be "
                "stages, pretraining or encyclopedia"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("seed", "end_to_end", "alike") else 1
            if field.name != "records" and value < least:
                raise ClaraError(
                    f"config field 'synthesize.{field.name}' is {value}, but must be "
                    f"at least {least}"
                )
        if self.documents > 20:
            raise ClaraError(
                f"config field 'synthesize.documents' is {self.documents}, but must be "
                "at most 20"
            )
        if not self.alike < self.candidates <= 200:
            raise ClaraError(
                f"config field 'synthesize.candidates' is {self.candidates}, but must "
                f"be above alike ({self.alike}) and at most 200"
            )


def prepare(workdir: str | Path, settings: Mapping[str, Any] | Settings) -> Path:
    """Write ``workdir/data`` unless it is there already.

    The folder appears whole or not at all, and holds the same bytes for the same
    settings, so that a run that was killed goes on with the same data.

    Args:
      workdir: the pipeline's folder.
      settings: fields of `Settings`.

    Returns:
      The folder.

    Raises:
      ClaraError: it holds data of other settings, or cannot be written.
    """
    if not isinstance(settings, Settings):
        settings = parse(Settings, settings, "synthesize")
    folder = Path(workdir) / "data"
    wanted = dataclasses.asdict(settings)
    if folder.exists():
        try:
            before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before != wanted:
            raise ClaraError(
                f"{folder} holds other data; give another --config.workdir"
            )
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".data.") as name:
            made = Path(name) / "data"
            made.mkdir()
            for file, rows in _contents(settings).items():
                _write_lines(made / file, rows)
            if settings.records == "pretraining":
                write_base(random_base(settings.seed), made / "start")
            text = json.dumps(wanted, indent=2) + "\n"
            (made / SETTINGS).write_text(text, encoding="utf-8")
            replace_folder(made, folder)
    except OSError as error:
        raise write_error(folder, error) from error
    return folder


def _contents(settings: Settings) -> dict[str, Iterable[records.Row]]:
    """File name to rows; each file has its own source of chance."""

    def rng(name: str) -> random.Random:
        return random.Random(f"{settings.seed} {name}")

    def some(rows: Iterable[records.Row], count: int) -> Iterable[records.Row]:
        return itertools.islice(rows, count)

    if settings.records == "pretraining":
        rows = records.pretraining(rng("pretraining"))
        held = records.instruction(rng("held out"), held_out=True)
        return {
            "pretraining.jsonl": some(rows, settings.pretraining),
            "held_out.jsonl": some(held, settings.held_out),
        }
    train = records.encyclopedia(rng("encyclopedia"))
    held = records.encyclopedia(rng("held out encyclopedia"), held_out=True)
    everything = train + held
    if settings.records == "encyclopedia":
        return {
            "encyclopedia.jsonl": records.covered(rng("questions"), everything),
            "paraphrases.jsonl": records.reworded(rng("paraphrases"), everything),
        }
    draw, held_draw = rng("end_to_end"), rng("held out questions")
    facts = records.asked(draw, train, range(len(train)))
    numbers = range(len(train), len(everything))
    held_facts = records.asked(held_draw, everything, numbers)[: settings.held_out]
    shape = {"candidates": settings.candidates, "alike": settings.alike}
    ranked = records.ranking(draw, train, facts, **shape)
    held_rows = records.ranking(held_draw, everything, held_facts, **shape)
    return {
        "scp.jsonl": some(records.compression(rng("scp")), settings.scp),
        "instruct.jsonl": some(
            records.instruction(rng("instruct"), settings.documents),
            settings.instruct,
        ),
        "end_to_end.jsonl": some(ranked, settings.end_to_end or len(facts)),
        "held_out.jsonl": held_rows,
        "documents.jsonl": _documents(held),
        "corpus.jsonl": _documents(everything),
    }


def _documents(corpus: Iterable[tuple[Entry, str]]) -> Iterator[records.Row]:
    """A body of documents; without titles, which would become part of the text."""
    return ({"id": item.name, "text": text} for item, text in corpus)


def _write_lines(path: Path, rows: Iterable[records.Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
