"""A model folder with a toy in it, for tests of commands."""

import functools

from clara_jax.config import LoraConfig, MemoryConfig, SelectionConfig
from clara_jax.convert import ClaraSettings, ModelFolder, write_model_folder
from clara_jax.testing import EOS, toy_network, toy_tokenizer

DOCUMENTS = [
    {"id": "d1", "title": "Ada Bell", "text": "Ada Bell was born in Corin"},
    {"title": "Edo Falk", "text": "Edo Falk studied in Gemma"},
    {"docs": ["Hana Iver was born in Jory"]},
]
QUESTION = "Where was Ada Bell born"


LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)


@functools.cache
def toy_parts():
    tokenizer = toy_tokenizer([*(str(d) for d in DOCUMENTS), QUESTION])
    return tokenizer, toy_network(text_vocab=len(tokenizer), lora=LORA)


def write_toy(path, *, roles=("compressor", "generator", "reasoner"), base=False):
    tokenizer, toy = toy_parts()
    settings = ClaraSettings(
        memory=MemoryConfig(doc_max_length=8, compression_rate=4),
        lora=LORA,
        selection=SelectionConfig(top_k=2),
        text_vocab=len(tokenizer),
    )
    model = ModelFolder(
        config=toy.model.config,
        params=toy.backbone["params"],
        tokenizer=tokenizer,
        clara=None if base else settings,
        adapters={name: toy.adapters[name] for name in (*roles, "memory")},
        rows=toy.backbone["rows"],
        eos_ids=(EOS,),
    )
    write_model_folder(path, model)
    return path
