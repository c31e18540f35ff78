"""Make the files beside this one: ``python tests/train/tiny/make.py``.

Sixteen invented people with two facts each, and a tokenizer of the words in them:
enough to run every stage of `configs/tiny.py` in seconds, too little to learn from.
"""

import json
import random
from pathlib import Path

from clara_jax.convert.model_folder import write_tokenizer
from clara_jax.testing import toy_tokenizer

HERE = Path(__file__).resolve().parent
NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hal Ida Jon Kai Lea Max Nia Oto Pia".split()
TOWNS = "Arden Burley Corfe Dover".split()
THINGS = "apples boats cats drums".split()


def facts(i: int) -> tuple[str, str, str]:
    town, thing = TOWNS[i % 4], THINGS[(i // 4) % 4]
    return f"{NAMES[i]} lives in {town} and sells {thing} .", town, thing


def questions(i: int) -> list[str]:
    return [f"Where does {NAMES[i]} live ?", f"What does {NAMES[i]} sell ?"]


def write(name: str, records: list[dict]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (HERE / name).write_text(lines, encoding="utf-8")


def main() -> None:
    rng = random.Random(0)
    people = range(len(NAMES))
    texts = [facts(i)[0] for i in people] + [q for i in people for q in questions(i)]
    write_tokenizer(HERE / "tokenizer", toy_tokenizer(texts))
    scp, asked = [], []
    for i in people:
        text, town, thing = facts(i)
        if i % 4 == 3:
            again = f"{thing} are what {NAMES[i]} of {town} sells ."
            scp.append({"data_type": "paraphrase", "docs": [text], "answers": [again]})
        else:
            pair = {"question": questions(i), "answers": [town, thing]}
            scp.append({"data_type": "qa", "docs": [text], **pair})
        others = rng.sample([j for j in people if j != i], 4)
        place = rng.randrange(5)
        others.insert(place, i)
        which = i % 2
        asked.append(
            {
                "docs": [facts(j)[0] for j in others],
                "question": questions(i)[which],
                "answer": (town, thing)[which],
                "pos_index": [place],
            }
        )
    write("documents.jsonl", scp)
    write("questions.jsonl", asked[:12])
    write("held_out.jsonl", asked[12:])


if __name__ == "__main__":
    main()
