"""The shipped base: a tiny pretrained backbone as a Hugging Face folder.

``configs/quickstart_base.py`` makes it again.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from clara_jax.checkpoint import replace_folder
from clara_jax.config import ModelConfig, RopeConfig
from clara_jax.convert import ModelFolder
from clara_jax.convert.names import hf_tensors
from clara_jax.errors import ClaraError
from clara_jax.files import write_error
from clara_jax.model import Transformer, init_backbone
from clara_jax.synthesize.tokenizer import make_tokenizer, save_tokenizer

BASE = Path(__file__).parent / "base"
"""Folder of the shipped base."""

SHAPE = ModelConfig(
    vocab_size=221,
    width=64,
    num_layers=3,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=160,
    tied=True,
    rope=RopeConfig(theta=10000.0, max_position=512),
)
"""156 thousand weights; the vocabulary is that of `make_tokenizer`."""


def random_base(seed: int) -> ModelFolder:
    """Make the untrained base, with its tokenizer.

    Its embeddings start large (standard deviation 0.25), so that tokens do not drown in
    what the first layers add: it learns several times faster than from 0.02.

    Args:
      seed: of the weights.
    """
    tokenizer = make_tokenizer()
    model = Transformer(SHAPE, text_vocab=len(tokenizer))
    params = jax.device_get(init_backbone(model, jax.random.key(seed)))
    draw = np.random.default_rng(seed)
    table = draw.normal(0.0, 0.25, (SHAPE.vocab_size, SHAPE.width))
    params["embed"]["embedding"] = table.astype(np.float32)
    return ModelFolder(SHAPE, params, tokenizer)


def write_base(model: ModelFolder, folder: str | Path) -> None:
    """Write a Llama-like model with the world's tokenizer as Hugging Face folder.

    Args:
      model: without biases, fused projections or norms of queries and keys.
      folder: destination; replaced whole.

    Raises:
      ClaraError: another architecture, or the disk is full.
    """
    config = model.config
    if (
        config.qkv_bias
        or config.output_bias
        or config.mlp_bias
        or config.qk_norm
        or config.fused_qkv
        or config.fused_gate_up
        or config.sliding_window
        or config.rope.kind != "default"
        or config.rope.fraction != 1
    ):
        raise ClaraError(f"{folder}: the model is not of the plain Llama form")
    tokenizer = make_tokenizer()
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.rope.max_position,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tensors = {}
    for tensor in hf_tensors(config):
        array = model.params
        for key in tensor.path:
            array = array[key]
        array = np.asarray(array if tensor.layer is None else array[tensor.layer])
        array = array.astype(np.float32)
        tensors[tensor.name] = np.ascontiguousarray(
            array.T if tensor.transpose else array
        )
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".base.") as name:
            made = Path(name) / folder.name
            made.mkdir()
            text = json.dumps(described, indent=2) + "\n"
            (made / "config.json").write_text(text, encoding="utf-8")
            save_file(tensors, made / "model.safetensors", {"format": "pt"})
            save_tokenizer(made)
            replace_folder(made, folder)
    except OSError as error:
        raise write_error(folder, error) from error
