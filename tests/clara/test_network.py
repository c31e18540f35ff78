"""Which variables a role gets, and what merging an adapter changes."""

import jax
import numpy as np
import pytest

from clara_jax.clara import Network
from clara_jax.testing import random_batch, toy_network


@pytest.mark.parametrize("tied", [True, False])
def test_variables_of_a_role(tied):
    toy = toy_network(tied=tied)
    variables = toy.variables("compressor")
    assert variables["params"] is toy.backbone["params"]
    assert variables["lora"] is toy.adapters["compressor"]
    assert variables["rows"]["embedding"].shape == (toy.num_memory + 3, 16)
    assert ("head" in variables["rows"]) != tied
    assert "lora" not in toy.variables()
    bare = Network(toy.model, {"params": 1}, {"backbone": 2})
    assert bare.variables() == {"params": 2}


def test_a_merged_network_plays_its_role_without_an_adapter():
    toy, question = toy_network(), random_batch("rerank").question
    merged = toy.merge("reasoner")
    flat = toy.reason(question)
    memory = merged.compress(question, role=None).memory
    np.testing.assert_allclose(memory.reshape(flat.shape), flat, rtol=1e-4, atol=1e-4)
    assert merged.adapters is toy.adapters


def test_a_network_is_an_argument_of_compiled_functions():
    toy = toy_network()
    other = toy.with_adapters({"memory": 2 * toy.adapters["memory"]})
    found = jax.jit(lambda network: network.adapters["memory"])(other)
    np.testing.assert_array_equal(found, 2 * toy.adapters["memory"])
    assert set(other.adapters) == set(toy.adapters) and other.backbone is toy.backbone
    model, structure = toy.model, jax.tree.structure(toy)
    assert jax.tree.structure(other) == structure
    wider = Network(model.clone(text_vocab=7), toy.backbone, toy.adapters)
    assert jax.tree.structure(wider) != structure
