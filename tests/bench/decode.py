"""Tokens decoded per second, against ``transformers.generate`` with its cache.

python tests/bench/decode.py
"""

import argparse
import dataclasses

import numpy as np
import smollm2
from side_by_side import compare

NEW, PROMPT = 64, 128


def main() -> None:
    """Measure and print, batch 1 and batch 8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import torch

    clara = smollm2.ours()
    # No end token: both sides decode as many tokens.
    settings = dataclasses.replace(
        clara.config, max_new_tokens=NEW, eos_ids=(clara.tokenizer.text_vocab - 1,)
    )
    clara = dataclasses.replace(clara, config=settings).merge()
    reference = smollm2.theirs(lora=False)
    rng = np.random.default_rng(0)
    for batch in (1, 8):
        ids = rng.integers(1000, 40000, (batch, PROMPT))
        rows = ids.tolist()
        model = dataclasses.replace(
            clara, config=dataclasses.replace(settings, batch_size=batch)
        )
        tensor = torch.tensor(ids)

        def run_theirs(tensor=tensor) -> None:
            with torch.no_grad():
                reference.generate(
                    tensor,
                    attention_mask=torch.ones_like(tensor),
                    max_new_tokens=NEW,
                    min_new_tokens=NEW,
                    do_sample=False,
                    use_cache=True,
                    pad_token_id=0,
                )

        compare(
            {
                "clara_jax": lambda m=model, r=rows: m.continue_prompts(r, None),
                "transformers": run_theirs,
            },
            rounds=options.rounds,
            what=f"decoding {NEW} tokens after {PROMPT}, batch {batch}, merged LoRA",
            unit="tokens",
            per_call=batch * NEW,
        )


if __name__ == "__main__":
    main()
