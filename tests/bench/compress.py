"""Documents compressed per second, against torch run as the original runs it.

    python tests/bench/compress.py --data PASSAGES.jsonl
    python tests/bench/compress.py --data PASSAGES.jsonl --profile

The original's way: batches of 8, every row padded to 256 + 3 + M tokens, a float32
forward pass with a PEFT adapter. Ours: rows of like length together, the adapter merged
(what `clara.merge("compressor")` gives), in float32 and in bfloat16.
"""

import argparse
import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import smollm2
from side_by_side import compare
from where import print_shares

from clara_jax.clara import Network
from clara_jax.clara.batches import pad_rows
from clara_jax.generate import Clara


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="records with real passages")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--profile", action="store_true", help="print where our time goes, and stop"
    )
    options = parser.parse_args()
    import torch

    texts = smollm2.passages(options.data, options.documents)
    clara = smollm2.ours(batch_size=8).merge("compressor")
    half = in_bfloat16(clara)
    if options.profile:
        for name, model in (("float32", clara), ("bfloat16", half)):
            print(f"8 rows of 256 tokens, {name}")
            profile(model)
        return
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
        {
            "clara_jax, float32": lambda: clara.compress(texts),
            "clara_jax, bfloat16": lambda: half.compress(texts),
            "torch, float32": run_theirs,
        },
        rounds=options.rounds,
        what="compression, SmolLM2-135M",
        unit="documents",
        per_call=len(texts),
    )
    ours, rounded = (
        model.compress(texts).astype(np.float32).reshape(len(texts), -1)
        for model in (clara, half)
    )
    cosine = np.sum(ours * rounded, axis=1)
    cosine /= np.linalg.norm(ours, axis=1) * np.linalg.norm(rounded, axis=1)
    print(f"  cosine of bfloat16 vectors with float32's: {cosine.min():.5f} at least")


def in_bfloat16(clara: Clara) -> Clara:
    """The same model with weights kept and multiplied in bfloat16."""
    half = {"dtype": "bfloat16", "param_dtype": "bfloat16"}

    def cast(network: Network) -> Network:
        model = network.model
        config = dataclasses.replace(model.config, **half)
        backbone = jax.tree.map(lambda x: x.astype(jnp.bfloat16), network.backbone)
        return dataclasses.replace(
            network, model=model.clone(config=config), backbone=backbone
        )

    merged = {role: cast(network) for role, network in clara.merged.items()}
    return dataclasses.replace(clara, network=cast(clara.network), merged=merged)


def profile(clara: Clara) -> None:
    """Print where a batch of full rows spends its time."""
    network = clara.merged["compressor"]
    tokens = pad_rows([[1] * 256] * 8, 0, 8, 256)

    @jax.jit
    def run(network):
        return network.compress(tokens, role=None).memory

    program = run.lower(network).compile()
    print_shares(program.as_text(), lambda: program(network).block_until_ready())


if __name__ == "__main__":
    main()
