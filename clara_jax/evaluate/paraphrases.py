"""How much of a document its vectors keep: the paraphrase held against the document.

The generator writes from the document's own vectors (``model``), from no document
(``none``), and from the vectors of the next passage that shares no document
(``shuffled``). What ``model`` has above them was in the vectors (paper section 4.5).
"""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clara_jax.data.records import Record
from clara_jax.errors import ClaraError
from clara_jax.evaluate import examine
from clara_jax.evaluate.metrics import bootstrap
from clara_jax.evaluate.predictions import Prediction
from clara_jax.evaluate.scores import answers_table
from clara_jax.files import first_line
from clara_jax.generate import Clara
from clara_jax.generate.batched import draw_instructions

_LABELS = {
    "model": "the model",
    "none": "no document",
    "shuffled": "another document's vectors",
}
_SHOWN = {"rouge_l": "ROUGE-L", "entities": "entities kept"}

FindEntities = Callable[[Sequence[str]], list[set[str]]]
"""Texts to the names in each, in lower case."""


class Passage(NamedTuple):
    """Texts that go in together, and the text to give back."""

    documents: tuple[str, ...]
    reference: str

    @property
    def text(self) -> str:
        """Return all that the vectors were made of."""
        return "\n\n".join(self.documents)


def passages_of(records: Iterable[Record], limit: int = 0) -> list[Passage]:
    """Return what records hold to paraphrase, each passage once, in the order met.

    Args:
      records: of kind ``paraphrase``, whose text to give back counts; of any other,
        each distinct document counts for itself.
      limit: first so many; 0 takes all.
    """
    found: dict[Passage, None] = {}
    for record in records:
        passages = [Passage((text,), text) for text in record.documents]
        if record.kind == "paraphrase":
            passages = [Passage(record.documents, record.answers[0])]
        found.update(dict.fromkeys(passages))
        if limit and len(found) >= limit:
            break
    return list(found)[: limit or None]


def paraphrase_all(
    clara: Clara, passages: Sequence[Passage], start: int = 0
) -> Iterator[list[Prediction]]:
    """Paraphrase every passage under every condition, as `examine` does questions.

    A prediction's question is the passage, its gold answer the text to give back.
    """
    instructions = draw_instructions(clara.config.seed, len(passages))
    rows = [passage.documents for passage in passages]
    for numbers in examine.chunks(clara, len(passages), start):
        read = {
            "model": [rows[i] for i in numbers],
            "none": [() for _ in numbers],
            "shuffled": [examine.other_documents(rows, i) for i in numbers],
        }
        asked = [instructions[i] for i in numbers]
        said = {name: clara.paraphrase(texts, asked) for name, texts in read.items()}
        yield [
            Prediction(
                index=i,
                question=passages[i].text,
                gold=(passages[i].reference,),
                positives=(),
                answers={name: said[name][row] for name in read},
                chosen={},
            )
            for row, i in enumerate(numbers)
        ]


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return each row's F-measure of the longest common subsequence (Lin, 2004).

    By the library rouge-score, with its Porter stemmer, as the published figures are.
    It knows words of Latin letters and digits only: texts in other scripts score 0.
    """
    rouge = need("rouge_score.rouge_scorer", "rouge-score")
    scorer = rouge.RougeScorer(["rougeL"], use_stemmer=True)
    return [
        float(scorer.score(reference, text)["rougeL"].fmeasure)
        for text, reference in zip(predictions, references, strict=True)
    ]


def entity_finder(name: str) -> FindEntities:
    """Return a finder of named entities: a spaCy model by name, or its folder.

    Raises:
      ClaraError: there is no such model, or it finds no entities.
    """
    spacy = need("spacy")
    try:
        pipeline = spacy.load(name)
    except Exception as error:  # of many kinds, by what is damaged
        raise ClaraError(
            f"the spaCy model '{name}' cannot be loaded ({first_line(error)}); install "
            "one with python -m spacy download en_core_web_sm, or give its folder"
        ) from error
    if not {"ner", "entity_ruler", "span_ruler"}.intersection(pipeline.pipe_names):
        raise ClaraError(
            f"the spaCy model '{name}' finds no entities; take one with a part 'ner', "
            "such as en_core_web_sm"
        )

    def find(texts: Sequence[str]) -> list[set[str]]:
        longest = max(map(len, texts), default=0)
        pipeline.max_length = max(pipeline.max_length, longest + 1)
        return [
            {" ".join(entity.text.casefold().split()) for entity in document.ents}
            for document in pipeline.pipe(texts)
        ]

    return find


def entities_kept(
    predictions: Sequence[str], entities: Sequence[set[str]]
) -> list[float]:
    """Return the share of each source's entities that its paraphrase names, or NaN."""
    shares = []
    for text, names in zip(predictions, entities, strict=True):
        said = " ".join(text.casefold().split())
        whole = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in names]
        kept = [re.search(pattern, said) is not None for pattern in whole]
        shares.append(float(np.mean(kept)) if kept else float("nan"))
    return shares


def paraphrase_scores(
    predictions: Sequence[Prediction], find: FindEntities | None, seed: int = 0
) -> dict[str, Any]:
    """Score every condition; entities are counted if `find` (`entity_finder`) is given.

    Returns:
      ``passages``, how many of them are ``with_entities``, and ``answers``: condition
      to metric to ``mean``, ``low``, ``high``.
    """
    answers = {}
    entities = find([p.question for p in predictions]) if find else None
    for condition in predictions[0].answers:
        said = [p.answers[condition] for p in predictions]
        values = {"rouge_l": rouge_l(said, [p.gold[0] for p in predictions])}
        kept = [] if entities is None else entities_kept(said, entities)
        values["entities"] = [share for share in kept if not np.isnan(share)]
        answers[condition] = {n: bootstrap(v, seed) for n, v in values.items() if v}
    return {
        "passages": len(predictions),
        "with_entities": None if entities is None else sum(map(bool, entities)),
        "answers": answers,
    }


def paraphrase_markdown(scores: Mapping[str, Any], title: str) -> str:
    """Return the scores as Markdown, means with their 95% intervals."""
    shown = {n: t for n, t in _SHOWN.items() if n in scores["answers"]["model"]}
    lines = [
        f"# {title}",
        "",
        f"{scores['passages']} passages; 95% intervals by bootstrap over passages.",
        *answers_table("paraphrases from", scores, _LABELS, shown),
    ]
    named = scores["with_entities"]
    if named is None:
        lines += ["", "Entities were not counted: that takes --spacy-model."]
    elif named < scores["passages"]:
        lines += ["", f"Entities are those of {named} passages; the others have none."]
    return "\n".join(lines) + "\n"


def need(module: str, package: str = "") -> Any:
    """Import a library of the extra ``eval``; `package`: its name where it differs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ClaraError(
            f"this needs the package {package or module}: pip install 'clara_jax[eval]'"
        ) from error
