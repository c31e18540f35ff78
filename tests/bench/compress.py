"""Documents compressed per second, against torch run as the original runs it.

    python tests/bench/compress.py --data PASSAGES.jsonl

The original's way: batches of 8, every row padded to 256 + 3 + M tokens, a float32
forward pass with a PEFT adapter. Ours: rows of like length together.
"""

import argparse
import collections

import numpy as np
import smollm2
from side_by_side import compare


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="records with real passages")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    texts = smollm2.passages(options.data, options.documents)
    clara = smollm2.ours(batch_size=8)
    reference = smollm2.theirs()
    longest = smollm2.MEMORY.doc_max_length
    rows = clara.tokenizer.encode_documents(texts, longest)
    lengths = [len(row) for row in rows]
    full = longest + 3 + smollm2.MEMORY.num_memory
    shown = collections.Counter(64 * -(-length // 64) for length in lengths)
    print(f"{len(texts)} passages, {np.mean(lengths):.0f} tokens on average of {full}")
    print(f"tokens rounded up to 64: {dict(sorted(shown.items()))}")

    ids = np.full((len(rows), full), clara.tokenizer.pad_id)
    mask = np.zeros((len(rows), full), int)
    for i, row in enumerate(rows):
        # Special rows are no part of the time: any embedding does.
        ids[i, : len(row)] = np.minimum(row, clara.tokenizer.text_vocab - 1)
        mask[i, : len(row)] = 1

    def run_theirs() -> None:
        with torch.no_grad():
            for i in range(0, len(rows), 8):
                reference(
                    input_ids=torch.tensor(ids[i : i + 8]),
                    attention_mask=torch.tensor(mask[i : i + 8]),
                    output_hidden_states=True,
                )

    compare(
        lambda: clara.compress(texts),
        run_theirs,
        rounds=options.rounds,
        what="compression, SmolLM2-135M with LoRA, float32",
        unit="documents",
        per_call=len(texts),
        names=("clara_jax, rows of like length", "torch, rows padded to the longest"),
    )


if __name__ == "__main__":
    main()
