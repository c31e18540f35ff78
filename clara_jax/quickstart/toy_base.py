"""The quickstart's base: a tiny language model, as a Hugging Face folder.

``configs/quickstart_base.py`` trains the one that comes with the package again. Its
tokenizer has one token per word of the encyclopedia, and one for each fixed sentence of
the prompts; ``tests/quickstart/word_tokenizer.py`` builds its file.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np

from clara_jax.convert import ModelFolder, hf_from_model_config, load_config
from clara_jax.convert.names import hf_tensors
from clara_jax.convert.tensors import outgoing, write_shards
from clara_jax.files import write_json
from clara_jax.model import Transformer, init_backbone
from clara_jax.text import load_tokenizer

BASE = Path(__file__).parent / "base"
"""Folder of the shipped base, of 156 thousand weights."""


def random_base(seed: int) -> ModelFolder:
    """Make a base of the shipped one's shape, untrained, with its tokenizer.

    Its embeddings start large (standard deviation 0.25), so that tokens do not drown in
    what the first layers add: it learns several times faster than from 0.02.
    """
    config, tokenizer = load_config(BASE), load_tokenizer(BASE)
    model = Transformer(config, text_vocab=len(tokenizer))
    params = jax.device_get(init_backbone(model, jax.random.key(seed)))
    draw = np.random.default_rng(seed)
    table = draw.normal(0.0, 0.25, (config.vocab_size, config.width))
    params["embed"]["embedding"] = table.astype(np.float32)
    return ModelFolder(config, params, tokenizer)


def write_base(model: ModelFolder, folder: Path) -> None:
    """Write a base with the shipped one's tokenizer files, in float32.

    Args:
      model: a base.
      folder: new or empty.

    Raises:
      ClaraError: transformers has no such architecture, or the disk is full.
      OSError: likewise.
    """
    described = hf_from_model_config(model.config)
    for token in ("bos", "eos", "pad"):
        described[f"{token}_token_id"] = getattr(model.tokenizer, f"{token}_token_id")
    tensors = {
        tensor.name: outgoing(model.params, tensor, "float32")
        for tensor in hf_tensors(model.config)
    }
    write_json(folder / "config.json", described)
    write_shards(folder, tensors)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(BASE / name, folder / name)
