"""Time to the first token: five documents as vectors, or as text.

    python tests/bench/first_token.py --data RECORDS

Vectors are ready before the question comes, as in a store; text is read with it.
"""

import argparse
import dataclasses

import smollm2
from side_by_side import compare


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="records with real passages")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    documents = smollm2.passages(options.data, 5)
    clara = smollm2.ours()
    one = dataclasses.replace(clara.config, max_new_tokens=1)
    clara = dataclasses.replace(clara, config=one)
    question = "What do these passages have in common?"
    vectors = clara.compress(documents)[None]
    lengths = [clara.tokenizer.document_length(text) for text in documents]
    rate = smollm2.MEMORY.compression_rate
    print(f"5 documents of {lengths} tokens; {rate}x: {vectors.shape[2]} vectors each")
    compare(
        {
            "from vectors": lambda: clara.answer_from_vectors([question], vectors),
            "from text": lambda: clara.answer_from_text(
                [question], [documents], "generator"
            ),
        },
        rounds=options.rounds,
        what="first token of an answer from 5 documents, SmolLM2-135M",
        unit="answers",
        per_call=1,
    )


if __name__ == "__main__":
    main()
