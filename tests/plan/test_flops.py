"""Operations by formula, against the traced program and against arithmetic by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from clara_jax.config import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    OptimConfig,
    RunConfig,
)
from clara_jax.model import PRESETS
from clara_jax.plan.counts import Reading, performed, readings, useful
from clara_jax.train.abstract_run import abstract_batch, abstract_run

SHAPE = dataclasses.replace(PRESETS["smollm2_135m"], num_layers=4, vocab_size=4096)
STAGES = ("lm", "scp", "instruct", "end_to_end", "rerank")


def run_config(stage, *, remat="none", accumulate=1, cache_vectors=False):
    return RunConfig(
        stage=stage,
        workdir="unused",
        backbone="random:smollm2_135m",
        remat=remat,
        data=DataConfig(
            batch_size=8, prompt_max_length=256, cache_vectors=cache_vectors
        ),
        optim=OptimConfig(steps=10, accumulate=accumulate),
    )


def both(config):
    run = abstract_run(config, SHAPE, SHAPE.vocab_size)
    counted = [useful(reading, config, SHAPE) for reading in readings(config)]
    done = performed(run.step, *run.arguments)
    return sum(sum(parts.values()) for parts in counted), done


@pytest.mark.parametrize("stage", STAGES)
def test_the_formula_is_what_a_step_computes(stage):
    needed, done = both(run_config(stage, cache_vectors=stage == "rerank"))
    # Attention is computed in blocks, not by half, and the logits twice.
    assert 1.0 <= done / needed < 1.15


def test_vectors_of_a_store_cost_what_cached_ones_do():
    cached = run_config("end_to_end", cache_vectors=True)
    data = dataclasses.replace(run_config("end_to_end").data, candidates=20)
    corpus = dataclasses.replace(
        run_config("end_to_end"), store="store", candidates="corpus", data=data
    )
    for config in (corpus, dataclasses.replace(corpus, candidates="given")):
        assert readings(config) == readings(cached)
        batch = abstract_batch(config, 576)
        assert batch.candidates is None and batch == abstract_batch(cached, 576)


@pytest.mark.slow
def test_microbatches_cost_nothing_and_recomputing_a_forward_pass():
    needed, done = both(run_config("scp"))
    split_needed, split = both(run_config("scp", accumulate=4))
    again_needed, again = both(run_config("scp", remat="full"))
    assert needed == split_needed == again_needed
    assert split == pytest.approx(done, rel=1e-6)
    assert 1.25 < again / done < 1.5


def test_four_n_per_token():
    config = RunConfig(
        stage="scp",
        workdir="unused",
        backbone="random:mistral_7b",
        memory=MemoryConfig(256, 16),
        lora=LoraConfig(rank=16),
    )
    shape = PRESETS["mistral_7b"]
    # Without the tables: 32 layers of attention and three matrices of the MLP.
    n = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
    adapters = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    trained = useful(Reading("generator", 2, 100, True), config, shape)
    assert trained["matrices"] == 4 * n * 200
    assert trained["adapters"] == 6 * adapters * 200
    assert trained["attention"] == 3 * 4 * 32 * 32 * 128 * 2 * 100 * 101 / 2
    frozen = useful(Reading("compressor", 2, 100, False), config, shape)
    assert frozen["matrices"] == 2 * n * 200
    full = useful(Reading("backbone", 2, 100, True, 200), config, shape)
    assert full["matrices"] == 6 * n * 200
    assert full["head"] == 6 * 4096 * 32000 * 200


def test_what_nothing_depends_on_is_left_out():
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)

    def wasteful(x):
        del_me = x @ x
        del del_me
        return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=3)[0]

    assert performed(wasteful, x) == 3 * 2 * 8**3


def test_the_costliest_branch_counts():
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert performed(either, x) == 2 * 2 * 8**3
