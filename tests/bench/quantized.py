"""What int8 and nf4 cost and save: loss, gradients, bytes and time of scp steps.

    python tests/bench/quantized.py --data scp_pretrain_1000.jsonl

The adapters are fresh, as a first step meets them. The packaged file holds 4-bit
weights already (Q4_1, groups of 32); here they are the unquantized model.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import smollm2
from side_by_side import compare

from clara_jax.clara import Network
from clara_jax.config import QUANTIZATIONS, DataConfig, RunConfig
from clara_jax.data import ExampleMaker, make_batches, open_records
from clara_jax.model import count, dequantize_params, quantize_params
from clara_jax.stages import STAGES

TRAINED = ("compressor", "generator", "memory")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="records of stage scp")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    clara = smollm2.ours()
    data = DataConfig(
        batch_size=options.batch,
        doc_buckets=(),
        prompt_buckets=(),
        prompt_max_length=256,
        too_long="cut",
        workers=0,
    )
    config = RunConfig("scp", "-", "-", memory=clara.memory, data=data)
    make = ExampleMaker(STAGES["scp"], clara.tokenizer, config)
    feed = iter(make_batches(open_records([options.data]), make))
    batches = [jax.device_put(next(feed)) for _ in range(options.batches)]
    network, loss = clara.network, STAGES["scp"].loss(config)

    def total(trained, frozen, batch):
        sums, weights, _ = loss(frozen.with_adapters(trained), batch, None)
        terms = {name: sums[name] / weights[name] for name in sums}
        return sum(terms.values(), start=jnp.zeros(())), terms

    slope = jax.jit(jax.value_and_grad(total, has_aux=True))
    trained = {name: network.adapters[name] for name in TRAINED}
    whole = jax.device_get(network.backbone["params"])
    frozen: dict[str, Network] = {}
    found: dict[str, Any] = {}
    programs: dict[str, Any] = {}
    for kind in QUANTIZATIONS:
        params = quantize_params(whole, kind)
        backbone = {**network.backbone, "params": jax.device_put(params)}
        frozen[kind] = Network(network.model, backbone, {})
        program = slope.lower(trained, frozen[kind], batches[0]).compile()
        programs[kind] = program
        memory: Any = program.memory_analysis()
        each = [program(trained, frozen[kind], batch) for batch in batches]
        terms = jax.device_get([aux for (_, aux), _ in each])
        found[kind] = jax.device_get([gradient for _, gradient in each])
        shown = ", ".join(
            f"{name} {np.mean([t[name] for t in terms]):.4f}" for name in terms[0]
        )
        cosines = [
            _cosine(a, b) for a, b in zip(found[kind], found["none"], strict=True)
        ]
        print(
            f"{kind}: backbone {count(params)[1]:,} bytes, layers "
            f"{count(params['layers'])[1]:,}; kernels off by "
            f"{_error(params, whole):.4f} of their size; losses {shown}; "
            "gradients' cosine with the unquantized "
            f"{min(cosines):.4f} to {max(cosines):.4f}; compiled step: arguments "
            f"{memory.argument_size_in_bytes:,} bytes, temporary "
            f"{memory.temp_size_in_bytes:,}",
            flush=True,
        )

    def run(kind: str):
        given = (trained, frozen[kind], batches[0])
        return jax.block_until_ready(programs[kind](*given))

    compare(
        {kind: lambda kind=kind: run(kind) for kind in reversed(QUANTIZATIONS)},
        rounds=options.rounds,
        what=f"loss and gradients of {options.batch} rows of scp, SmolLM2-135M, "
        f"{network.model.config.dtype}",
        unit="steps",
        per_call=1,
    )


def _cosine(a: Any, b: Any) -> float:
    """Of two trees, each as one long vector."""
    a, b = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])
        for tree in (a, b)
    )
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _error(params: Any, whole: Any) -> float:
    """Root mean square of what was rounded away, as a share of the kernels' own."""
    rounded = dequantize_params(params, "float32")["layers"]
    off = size = 0.0
    for part in ("attention", "mlp"):
        for name, weights in whole["layers"][part].items():
            if "kernel" in weights:
                kernel = np.asarray(weights["kernel"], np.float32)
                off += np.sum(np.square(rounded[part][name]["kernel"] - kernel))
                size += np.sum(np.square(kernel))
    return float(np.sqrt(off / size))


if __name__ == "__main__":
    main()
