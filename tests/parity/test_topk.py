"""The differentiable top-k equals the original's, values and slopes (topk.npz)."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara import soft_topk

CLOSE = 1e-5
ROUNDED = 2**-7
"""Of gradients in bfloat16: a unit in the last place."""


def _cases(oracle):
    path = oracle / "topk.json"
    assert path.is_file(), f"missing: {path}"
    facts = json.loads(path.read_text(encoding="utf-8"))
    with np.load(oracle / "topk.npz") as file:
        arrays = dict(file)
    for case in facts:
        name = f"{case['case']}/"
        yield (
            case,
            {
                key.removeprefix(name): value
                for key, value in arrays.items()
                if key.startswith(name)
            },
        )


def test_values_and_slopes(oracle):
    count = 0
    for case, arrays in _cases(oracle):
        dtype = jnp.dtype(case["dtype"])
        indices = jnp.asarray(arrays["idx"]).reshape(case["B"], case["k"])

        def choose(scores, case=case, indices=indices):
            weights, _ = soft_topk(
                scores, case["k"], case["temperature"], indices=indices
            )
            return weights

        weights, pull = jax.vjp(choose, jnp.asarray(arrays["logits"], dtype))
        (slope,) = pull(jnp.asarray(arrays["cotangent"], dtype))
        # Ours rounds bfloat16 elsewhere: scores are always float32 in the losses.
        close = CLOSE if dtype == jnp.float32 else ROUNDED
        found = ((weights, arrays["weights"], CLOSE), (slope, arrays["grad"], close))
        for ours, theirs, limit in found:
            ours = np.asarray(ours, np.float32)
            scale = max(1.0, np.abs(theirs).max())
            assert np.abs(ours - theirs).max() <= limit * scale, case
        count += 1
    assert count, "no cases"


def test_choices(oracle):
    for case, arrays in _cases(oracle):
        if case["index_order_is_implementation_detail"]:
            continue
        scores = jnp.asarray(arrays["logits"], jnp.dtype(case["dtype"]))
        _, indices = soft_topk(scores, case["k"], case["temperature"])
        np.testing.assert_array_equal(
            indices, arrays["idx"].reshape(case["B"], case["k"])
        )
