"""One end_to_end step with document vectors at hand, against compressing candidates.

    python tests/bench/stage3_step.py --data musique_train_100.jsonl

The compressor is frozen in this stage, so that vectors made once serve every step.
"""

import argparse
import dataclasses

import jax
import numpy as np
import smollm2
from side_by_side import compare

from clara_jax.config import DataConfig, OptimConfig, RunConfig
from clara_jax.data import ExampleMaker, make_batches, open_records
from clara_jax.stages import STAGES
from clara_jax.train.state import init_state, make_optimizer, make_schedule
from clara_jax.train.step import make_train_step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="records with 20 candidates")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    clara = smollm2.ours()
    data = DataConfig(
        batch_size=options.batch,
        candidates=20,
        prompt_max_length=400,
        too_long="cut",
        workers=0,
    )
    stage, lengths = STAGES["end_to_end"], {"memory": clara.memory, "data": data}
    config = RunConfig(stage.name, "-", "-", selection=clara.selection, **lengths)
    make = ExampleMaker(stage, clara.tokenizer, config)
    batches = make_batches(open_records([options.data]), make)
    batch = jax.device_put(next(iter(batches)))
    network = clara.network
    shape = (options.batch, 20)

    @jax.jit
    def read(network, tokens):
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), tokens)
        memory = network.compress(flat).memory
        return memory.reshape(*shape, *memory.shape[1:])

    vectors = read(network, batch.candidates)
    cached = batch.replace(candidates=None, vectors=vectors)
    trained = ("generator", "reasoner")
    own = {k: v for k, v in network.adapters.items() if k not in trained}
    frozen = dataclasses.replace(network, adapters=own)
    optim = OptimConfig(steps=100)
    schedule = make_schedule(optim, 100)
    optimizer = make_optimizer(optim, schedule)
    step = make_train_step(stage.loss(config), optimizer, schedule)
    step = jax.jit(step, donate_argnums=0)
    states = {
        name: init_state(
            {k: network.adapters[k] for k in trained}, optimizer, jax.random.key(0)
        )
        for name in ("cached", "whole")
    }

    def run(name, given):
        states[name], metrics = step(states[name], frozen, given)
        return float(metrics["loss"])

    assert batch.candidates is not None and batch.prompt is not None
    tokens = {
        "candidates": int(np.sum(batch.candidates.mask)),
        "prompts": int(np.sum(batch.prompt.mask)),
    }
    print(f"{options.batch} questions with 20 candidates each; tokens: {tokens}")
    compare(
        {
            "vectors at hand": lambda: run("cached", cached),
            "candidates compressed": lambda: run("whole", batch),
        },
        rounds=options.rounds,
        what="one end_to_end step, SmolLM2-135M, top 5 of 20",
        unit="steps",
        per_call=1,
    )
    losses = [
        run(name, given) for name, given in (("cached", cached), ("whole", batch))
    ]
    print(f"  the same loss on both sides: {losses[0]:.5f}, {losses[1]:.5f}")


if __name__ == "__main__":
    main()
