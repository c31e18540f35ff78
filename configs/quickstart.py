"""CLaRa from its first stage to its last on an invented encyclopedia, on a laptop.

A tiny pretrained base that comes with the package (`quickstart_base.py` makes it again)
stays frozen; LoRA adapters and memory tokens learn on it, as in the big experiments:

1. ``scp``: a document of 34 tokens becomes 8 vectors; from these alone its facts and a
   paraphrase are to be told.
2. ``instruct``: one question, one short answer, from the right document's vectors.
3. ``end_to_end``: 20 candidates, a question, its answer, and nobody says which of them
   is the right one: the loss on the answer teaches the question encoder to search. Of
   the 19 others up to 16 share the first or the last name.

All questions that are measured are about people whom no stage has met, not even the
base (wrong candidates may be old acquaintances). At the end: a table, a picture of the
curves, some questions with the model's answers, and the command to ask your own.

The generator is given one document, the best (``selection.top_k`` 1; the paper takes
5): the base has read one document at a time, and models of this size are slow to learn
to tell several apart by the names in them.

Source: the method is the paper's (arXiv 2511.18659); the world is ours. Learning rates
    are those of a toy, and dropout is off.
Command: python -m clara_jax.train --config=configs/quickstart.py
Hardware: two CPU cores, 2 GiB, no network. Time: 4 minutes on idle ones.
Score: exact match of answers from compressed documents 0.99; Recall@1 from 0.16 to 0.99
    in stage 3; answers end to end from 0.20 to 0.99 (three seeds).
"""

from ml_collections import ConfigDict

from clara_jax.quickstart import BASE
from configs import common


def get_config() -> ConfigDict:
    """The three stages, one after the other."""
    config = common.base("scp", "runs/quickstart", str(BASE))
    config.unlock()
    config.quickstart = ConfigDict(
        {
            "records": "stages",
            "seed": 0,
            "scp": 20000,
            "instruct": 10000,
            "end_to_end": 0,
            "held_out": 200,
            "candidates": 20,
            "alike": 16,
            "documents": 1,
        }
    )
    config.memory.doc_max_length = 34
    config.memory.compression_rate = 4
    config.lora.dropout = 0.0
    config.selection.top_k = 1
    config.optim.b2 = 0.98
    config.optim.warmup_fraction = 0.05
    config.optim.final_fraction = 0.05
    config.optim.weight_decay = 0.01
    config.data.batch_size = 48
    config.data.eval_batch_size = 50
    config.data.prompt_max_length = 72
    config.data.question_max_length = 12
    config.hooks.log_every = 10
    config.hooks.max_new_tokens = 6
    config.hooks.checkpoint_every = 100
    config.hooks.tensorboard = False
    held_out = ("{workdir}/data/held_out.jsonl",)
    config.stages = (
        {
            "name": "scp",
            "stage": "scp",
            "data": {"train": ("{workdir}/data/scp.jsonl",)},
            "optim": {"learning_rate": 5e-3, "steps": 400},
        },
        {
            "name": "instruct",
            "stage": "instruct",
            "data": {
                "train": ("{workdir}/data/instruct.jsonl",),
                "eval": held_out,
                "batch_size": 64,
                "prompt_max_length": 36,
            },
            "optim": {"learning_rate": 3e-3, "steps": 150},
            "hooks": {"eval_every": 50, "eval_first": True},
        },
        {
            "name": "end_to_end",
            "stage": "end_to_end",
            "data": {
                "train": ("{workdir}/data/end_to_end.jsonl",),
                "eval": held_out,
                "batch_size": 64,
                "prompt_max_length": 36,
                "candidates": 20,
                "cache_vectors": True,
            },
            "optim": {"learning_rate": 4e-3, "steps": 250},
            "hooks": {"eval_every": 50, "eval_first": True},
        },
    )
    return config.lock()
