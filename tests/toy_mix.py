"""Sources of a mix in which everything happens, and what is read of a mix."""

import json

import numpy as np

from clara_jax.data import mix, read_recipe
from clara_jax.testing import toy_tokenizer
from clara_jax.text import ClaraTokenizer

LENGTH = 60
"""Longest piece, in words."""

TOKENIZER = ClaraTokenizer(toy_tokenizer(), 1)
STAGES = ("scp", "instruct", "end_to_end")

HEAD = "held_out = 0.25\ncandidates = 8\ndistractors = [2, 4]\npairs = 4\n"


SMALL_STEPS = {"mix_read.CHUNK": 16, "mix_write.AT_ONCE": 20, "candidates.BLOCK": 50}
"""What makes a mix of this world take many steps: names in clara_jax.data."""


def source(name, path, *more):
    lines = (f'name = "{name}"', f'path = "{path}"', 'licence = "CC0-1.0"', *more)
    return "\n".join(("[[source]]", *lines, ""))


def words(random, count):
    return " ".join(f"w{random.integers(400)}" for _ in range(count))


def passage(random, number, sentences=3):
    """Sentences of twelve words; each holds a word that no other passage has."""
    return " ".join(
        f"Fact x{number}y{i} is {words(random, 8)}." for i in range(sentences)
    )


def pairs(number, sentences, count):
    return {
        "question": [
            f"What about x{number}y{i % sentences} no {i}?" for i in range(count)
        ],
        "answers": [f"x{number}y{i % sentences}" for i in range(count)],
    }


def write_jsonl(path, rows):
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def write_world(folder):
    """Write sources that share passages in every way that there is."""
    random = np.random.default_rng(0)
    texts = [passage(random, i) for i in range(60)]
    rows = [
        {"docs": [text], "data_type": "qa", **pairs(i, 3, 1 + i % 9)}
        for i, text in enumerate(texts)
    ]
    long = [passage(random, 1000 + i, 12) for i in range(6)]
    rows += [{"docs": [t], **pairs(1000 + i, 12, 12)} for i, t in enumerate(long)]
    rows.append({"docs": [long[0] + " End."], "question": "Is it?", "answer": "yes"})
    write_jsonl(folder / "single.jsonl", rows)
    # The first ten again, with a question that is known and one that is new; near
    # copies of the next ten; and some that are new.
    again = [
        {
            "docs": [texts[i].replace(" ", "  ", 1)],
            "question": [f"What about x{i}y0 no 0?", f"Anything new {i}?"],
            "answers": [f"x{i}y0", "new"],
        }
        for i in range(10)
    ]
    near = [
        {"docs": [f"{texts[i]} More."], "question": "Near?", "answer": "near"}
        for i in range(10, 20)
    ]
    new = [
        {"docs": [passage(random, 100 + i)], "question": f"New {i}?", "answer": "x"}
        for i in range(30)
    ]
    write_jsonl(folder / "again.jsonl", [*again, *near, *new])
    others = [passage(random, 200 + i) for i in range(80)]
    multi = []
    for i in range(40):
        documents = [others[j] for j in random.choice(80, 5, replace=False)]
        if i % 5 == 0:
            documents[1] = texts[20 + i]
        if i % 7 == 0:
            documents[3] = f"{texts[30 + i // 7]} Near."
        multi.append(
            {
                "docs": documents,
                "question": f"Which of both, {i}?",
                "answers": [f"both {i}", f"also {i}"],
                "pos_index": [1, 4],
            }
        )
    multi.append({"docs": others[:3], "question": "Unmarked?", "answer": "x"})
    write_jsonl(folder / "multi.jsonl", multi)
    write_jsonl(
        folder / "other_words.jsonl",
        [
            {
                "docs": [passage(random, 300 + i, 2)],
                "answers": [f"short {i}"],
                "data_type": "paraphrase",
            }
            for i in range(12)
        ],
    )
    plain = [passage(random, 400 + i, 8) for i in range(12)] + texts[40:44]
    write_jsonl(
        folder / "plain.jsonl",
        [{"id": str(i), "text": text} for i, text in enumerate(plain)],
    )
    return folder


SOURCES = (
    source("single", "single.jsonl", "reconstruct = 0.5")
    + source("again", "again.jsonl", "instruct = 0.5", "end_to_end = 2")
    + source("multi", "multi.jsonl", "scp = 0", "instruct = 2")
    + source("other", "other_words.jsonl")
    + source("plain", "plain.jsonl", "reconstruct = 1")
)


def write_recipe(folder, sources=SOURCES, head=HEAD, name="recipe.toml"):
    path = folder / name
    path.write_text(head + sources, encoding="utf-8")
    return path


def make(world, folder, sources=SOURCES, head=HEAD, **options):
    recipe = read_recipe(write_recipe(folder.parent, sources, head))
    return mix(recipe, folder, TOKENIZER, LENGTH, data=world, **options)


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def documents(path):
    return {text for row in rows(path) for text in row["docs"]}


def tree(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def held_files(folder):
    return [folder / "held_out_scp.jsonl", *sorted(folder.glob("held_out/*.jsonl"))]
