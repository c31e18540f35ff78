"""The public dummies fit the losses, the tokenizer and each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax import testing
from clara_jax.clara import IGNORE
from clara_jax.config import SelectionConfig
from clara_jax.stages import STAGES, make_loss
from clara_jax.text import ClaraTokenizer, answer_prompt


@pytest.fixture(scope="module")
def toy():
    return testing.toy_network()


@pytest.mark.parametrize("stage", STAGES)
def test_every_loss_takes_its_batch(toy, stage):
    batch = testing.random_batch(stage)
    loss = make_loss(stage, selection=SelectionConfig(top_k=3))

    def total(trained, frozen):
        network = toy.with_adapters({**frozen, **trained})
        sums, weights, _ = loss(network, batch, None)
        return sum(sums[name] / weights[name] for name in sums)

    everything = {**toy.adapters, "backbone": toy.backbone["params"]}
    trained = {name: everything[name] for name in STAGES[stage].trains}
    value, gradients = jax.jit(jax.value_and_grad(total))(trained, toy.adapters)
    assert np.isfinite(value)
    # The toys are rich enough for a gradient to reach every trained array.
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert jnp.any(gradient != 0), jax.tree_util.keystr(path)


def test_batches_are_repeatable_and_ragged():
    one, two = (testing.random_batch("end_to_end", seed=3) for _ in range(2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.prompt is not None and one.candidates is not None
    assert len(set(one.prompt.mask.sum(-1).tolist())) > 1
    assert len(set(one.candidates.mask.sum(-1).ravel().tolist())) > 1
    assert one.candidates.ids.shape[:2] == (4, 6)


def test_labels_are_the_prompts_own_tokens():
    batch = testing.random_batch("instruct")
    assert batch.prompt is not None and batch.labels is not None
    counted = np.asarray(batch.labels != IGNORE)
    np.testing.assert_array_equal(
        np.asarray(batch.labels)[counted], np.asarray(batch.prompt.ids)[counted]
    )
    assert counted.any(axis=-1).all()


def test_adapters_differ(toy):
    ids = jnp.arange(8)[None, :]
    apply = jax.jit(toy.model.apply)
    outputs = []
    for role in ("compressor", "reasoner", "generator"):
        variables = {"params": toy.backbone["params"], "lora": toy.adapters[role]}
        outputs.append(apply(variables, ids))
    assert not np.allclose(outputs[0], outputs[1], atol=1e-3)
    assert not np.allclose(outputs[1], outputs[2], atol=1e-3)


@pytest.mark.parametrize("changes", [{"tied": True}, {"qkv_bias": True}])
def test_toys_of_other_kinds(changes):
    toy = testing.toy_network(**changes)
    plain = testing.toy_network().model.config
    assert toy.model.config == dataclasses.replace(plain, **changes)
    assert ("head" in toy.backbone["params"]) == ("tied" not in changes)


@pytest.mark.parametrize("template", [testing.CHAT_TEMPLATE, None])
def test_the_tokenizer_knows_the_prompts(template):
    base = testing.toy_tokenizer(["Who lives in Norvik?"], template)
    tokenizer = ClaraTokenizer(base, num_memory=2)
    ids, answer_at = tokenizer.encode_chat(
        answer_prompt(tokenizer.slots(2), "Who lives in Norvik?"), "Who"
    )
    assert base.unk_token_id not in ids
    assert ids.count(tokenizer.sep_id) == 2
    assert tokenizer.decode(ids[answer_at:]).strip() == "Who"
    assert (base.pad_token_id, base.bos_token_id, base.eos_token_id) == (0, 1, 2)
