"""The shipped base: a tiny pretrained backbone as a Hugging Face folder.

``configs/quickstart_base.py`` makes it again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import numpy as np

from clara_jax.checkpoint import replace_folder
from clara_jax.config import ModelConfig, RopeConfig
from clara_jax.convert import ModelFolder, hf_from_model_config
from clara_jax.convert.names import hf_tensors
from clara_jax.convert.outgoing import outgoing
from clara_jax.convert.shards_writer import write_shards
from clara_jax.files import write_error, write_json
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
    """Write a model with the world's tokenizer as Hugging Face folder, in float32.

    Args:
      model: a base.
      folder: destination; replaced whole.

    Raises:
      ClaraError: transformers has no such architecture, or the disk is full.
    """
    tokenizer = make_tokenizer()
    described = {
        **hf_from_model_config(model.config),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tensors = {
        tensor.name: outgoing(model.params, tensor, "float32")
        for tensor in hf_tensors(model.config)
    }
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".base.") as name:
            made = Path(name) / folder.name
            made.mkdir()
            write_json(made / "config.json", described)
            write_shards(made, tensors)
            save_tokenizer(made)
            replace_folder(made, folder)
    except OSError as error:
        raise write_error(folder, error) from error
