"""Measure a model on questions with documents.

    python -m clara_jax.evaluate --model DIR --data FILE [--setting normal|oracle]
    python -m clara_jax.evaluate --model DIR --data FILE --paraphrase [--spacy-model M]

Beside the model's own scores: the same questions with the gold documents' vectors, with
none, and with another question's (how much comes from the memory?), and baselines. Into
--out go predictions.jsonl, scores.json, scores.md, and the answers as the data set's
leaderboard takes them; started again, it goes on.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from clara_jax import commands
from clara_jax.convert import named_folder
from clara_jax.data import each, is_hub, open_records, require_documents
from clara_jax.documents import text_digest
from clara_jax.errors import ClaraError
from clara_jax.evaluate import examine, paraphrases
from clara_jax.evaluate.evaluators import questions_of, refuse_top_k
from clara_jax.evaluate.leaderboard import write_leaderboard
from clara_jax.evaluate.metrics import RULES
from clara_jax.evaluate.predictions import Prediction, PredictionFile
from clara_jax.evaluate.scores import markdown, remarks, scores_of
from clara_jax.files import write_json, write_text
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.loading import load


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = commands.Parser(
        "python -m clara_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help=commands.MODEL)
    data = "records: file, FOLDER#SPLIT or hf:NAME:CONFIG#SPLIT; may be repeated"
    add("--data", required=True, action="append", help=data)
    commands.add_record_options(parser)
    how = "normal: choose among candidates; oracle: gold documents are given"
    add("--setting", choices=("normal", "oracle"), default="normal", help=how)
    add("--limit", type=int, default=0, help="first so many questions; 0 takes all")
    add("--top-k", type=int, help="documents to answer from; default: as trained")
    listed = "comma-separated, out of %(default)s; empty for none"
    add("--baselines", default=",".join(examine.BASELINES), help=listed)
    commands.add_model_options(parser)
    what = "paraphrase documents instead: ROUGE-L, and entities with --spacy-model"
    add("--paraphrase", action="store_true", help=what)
    add("--spacy-model", default="", help="name or folder, such as en_core_web_sm")
    longest = "longest answer; default: 32, of paraphrases 256"
    add("--max-new-tokens", type=int, default=0, help=longest)
    add("--batch-size", type=int, default=8, help="rows read together")
    add("--seed", type=int, default=0, help="of the bootstrap")
    script = "metrics of the original, or of a data set's own script"
    add("--rules", choices=RULES, default="original", help=script)
    letters = "drop all scripts' punctuation; compare Chinese etc. by characters"
    add("--unicode", action="store_true", help=letters)
    add(
        "--out",
        help="folder for the results; default: DIR/evaluation/DATA_SETTING, or for a "
        "model by name evaluation/NAME/DATA_SETTING",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = parser().parse_args(argv)
    return commands.run(lambda: _run(arguments))


class _Work(NamedTuple):
    """What is measured: texts for a model, how, and what becomes of its predictions."""

    clara: Clara
    texts: Sequence[Any]
    settings: dict[str, Any]
    predict: Callable[[int], Iterator[list[Prediction]]]
    scores: Callable[[list[Prediction]], dict[str, Any]]
    table: Callable[[dict[str, Any], str], str]
    formats: Sequence[str] = ()


def _run(arguments: argparse.Namespace) -> None:
    if arguments.limit < 0:
        raise ClaraError("--limit must not be negative")
    if arguments.spacy_model and not arguments.paraphrase:
        raise ClaraError(
            "--spacy-model counts entities of paraphrases; add --paraphrase"
        )
    named, data = Path(arguments.model), arguments.data
    unit, setting, make = "question", arguments.setting, _answers
    if arguments.paraphrase:
        unit, setting, make = "passage", "paraphrase", _paraphrases
    work = make(arguments)
    folder = named / "evaluation" if named.exists() else "evaluation" / named
    out = Path(arguments.out or folder / f"{Path(data[0]).stem}_{setting}")
    model, count = named_folder(arguments.model), len(work.texts)
    # Another training, of which the adapters are, predicts otherwise.
    peft = model.glob("*/adapter_model.safetensors")
    adapters = (
        model / "adapters",
        model / "adapters.pth",
        *model.glob("*/adapters.pth"),
        *peft,
    )
    written = [path.stat().st_mtime_ns for path in adapters if path.exists()]
    settings = {
        "model": os.path.realpath(model),
        "trained": max(written, default=0),
        "data": [p if is_hub(p) else os.path.realpath(p) for p in data],
        "base": os.path.realpath(arguments.base) if arguments.base else "",
        "setting": setting,
        **work.settings,
        f"{unit}s": count,
        "rate": work.clara.memory.compression_rate,
        "max_new_tokens": work.clara.config.max_new_tokens,
        "dtype": work.clara.network.model.config.dtype,
        "content": text_digest(repr(list(work.texts))).hex(),
    }
    if arguments.quantize != "none":  # older files say nothing of whole weights
        settings["quantize"] = arguments.quantize
    if arguments.control_tokens:
        settings["control_tokens"] = True
    file = PredictionFile(out / "predictions.jsonl", settings)
    done = file.done
    with tqdm(desc=f"{unit}s", total=count, initial=len(done), unit=unit) as bar:
        for predictions in work.predict(len(done)):
            file.add(predictions)
            bar.update(len(predictions))
    scores = work.scores(done)
    names = ", ".join(Path(path).name for path in data)
    text = work.table(scores, f"{named.name} on {names}")
    write_json(out / "scores.json", {"settings": settings, **scores})
    write_text(out / "scores.md", text)
    if not arguments.paraphrase:
        top_k = work.settings["top_k"]
        others = write_leaderboard(out, done, work.formats, top_k)
        for remark in (*remarks(scores), *others):
            commands.note(remark)
    print(f"{text}\nwritten to {out}")


def _answers(arguments: argparse.Namespace) -> _Work:
    records = open_records(arguments.data, **commands.record_options(arguments))
    questions = questions_of(each(records, require_documents), arguments.limit)
    if not questions:
        raise ClaraError(f"{arguments.data[0]}: holds no questions")
    clara = _load(arguments, max_new_tokens=32)
    baselines = [name for name in arguments.baselines.split(",") if name]
    conditions = examine.conditions_of(clara, arguments.setting, baselines)
    top_k = clara.selection.top_k if arguments.top_k is None else arguments.top_k
    if arguments.setting == "normal":
        refuse_top_k(top_k, questions)
    exam = examine.Exam(arguments.setting, top_k, conditions)
    how: Any = {"rules": arguments.rules, "unicode": arguments.unicode}
    return _Work(
        clara,
        questions,
        {"top_k": top_k, "conditions": conditions},
        predict=lambda start: examine.examine(clara, questions, exam, start),
        scores=lambda done: scores_of(done, top_k, arguments.seed, **how),
        table=markdown,
        formats=records.formats,
    )


def _paraphrases(arguments: argparse.Namespace) -> _Work:
    paraphrases.need("rouge_score", "rouge-score")
    name = arguments.spacy_model
    find = paraphrases.entity_finder(name) if name else None
    records = open_records(arguments.data, **commands.record_options(arguments))
    passages = paraphrases.passages_of(
        each(records, require_documents), arguments.limit
    )
    if not passages:
        raise ClaraError(f"{arguments.data[0]}: holds no documents")
    clara = _load(arguments, max_new_tokens=256)
    limit = clara.memory.doc_max_length
    count_tokens = clara.tokenizer.document_length
    cut = sum(any(count_tokens(t) > limit for t in p.documents) for p in passages)
    if cut:
        commands.note(
            f"{cut} of {len(passages)} passages are longer than the {limit} tokens "
            "that the model reads; what it cannot read counts as lost"
        )
    return _Work(
        clara,
        passages,
        {},
        predict=lambda start: paraphrases.paraphrase_all(clara, passages, start),
        scores=lambda done: paraphrases.paraphrase_scores(done, find, arguments.seed),
        table=paraphrases.paraphrase_markdown,
    )


def _load(arguments: argparse.Namespace, max_new_tokens: int) -> Clara:
    config = AnswerConfig(
        control_tokens=arguments.control_tokens,
        max_new_tokens=arguments.max_new_tokens or max_new_tokens,
        batch_size=arguments.batch_size,
        prompt_max_length=8192,
        too_long="cut",
    )
    return load(arguments.model, config, **commands.model_options(arguments))


if __name__ == "__main__":
    commands.start(main)
