"""Logits and decoding positions against transformers, one tiny model a family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.clara import positions_in_rows
from clara_jax.convert import load_model
from clara_jax.model import Transformer
from clara_jax.testing import toy_tokenizer

torch = pytest.importorskip(
    "torch", reason="compares with PyTorch: pip install torch==2.13.0"
)
import transformers  # noqa: E402

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [2.0, 3.0, 5.0],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_theta": 50000.0,
    "rope_local_base_freq": 700.0,
}

FAMILIES = {
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral_window": ("Mistral", {"sliding_window": 5}),
    "mistral_head_dim": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "llama_untied": ("Llama", {"tie_word_embeddings": False}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama3": ("Llama", {"rope_scaling": LLAMA3}),
    "llama_yarn": ("Llama", {"rope_scaling": YARN}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_mixed_windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3_windows": (
        "SmolLM3",
        {
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 0, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "gemma3": ("Gemma3", GEMMA),
    "gemma3_linear": (
        "Gemma3",
        {
            **GEMMA,
            "query_pre_attn_scalar": 24,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
    ),
    "gemma3_short": ("Gemma3", {**GEMMA, "sliding_window": 64}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3_window": ("Phi3", {"sliding_window": 7}),
    "phi4_short": (
        "Phi3",
        {
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
            "rope_scaling": LONG,
            "original_max_position_embeddings": 64,
            "sliding_window": 300,
        },
    ),
    "phi4_long": (
        "Phi3",
        {
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
            "rope_scaling": LONG,
            "original_max_position_embeddings": 8,
        },
    ),
}


def _reference(family, changes, folder):
    torch.manual_seed(0)
    kind = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Spread norms and biases too, so that leaving one out shows.
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal(name, tmp_path):
    reference = _reference(*FAMILIES[name], tmp_path)
    loaded = load_model(tmp_path)
    model = Transformer(loaded.config, loaded.config.vocab_size)
    params = jax.tree.map(jnp.asarray, loaded.params)
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 97, (2, 20))
    mask = np.ones((2, 20), bool)
    mask[1, :6] = False
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            position_ids=torch.tensor(
                np.maximum(np.cumsum(mask, 1) - 1, 0), dtype=torch.long
            ),
        ).logits.numpy()
    positions = positions_in_rows(jnp.asarray(mask))
    logits = model.apply(
        {"params": params}, jnp.asarray(ids), positions, jnp.asarray(mask)
    )
    difference = np.abs(np.asarray(logits) - expected)[mask]
    assert difference.max() < 1e-4 * np.abs(expected[mask]).max()
