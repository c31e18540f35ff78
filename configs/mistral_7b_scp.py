"""Compression pretraining (stage 1) of Mistral-7B-Instruct-v0.2, 16x.

Source: paper section 3.1 and table 10: batch 128, learning rate 1e-4, LoRA rank 16, MSE
    weight 0.1, one epoch over 2,000,000 simple and 2,000,000 complex question sets and
    1,966,291 paraphrases.
Command: python -m clara_jax.train --config=configs/mistral_7b_scp.py
    --config.data.train=data/scp_pretrain.jsonl
Hardware: by estimate one GPU of 80 GB (frozen weights: 14.5 GB), in microbatches of 8
    (``optim.accumulate``). Several GPUs share the rows of a microbatch.
Time and score: not measured.
Local mode: ``configs/mistral_7b_scp.py:local`` (20 steps of 4 on 64 records).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = common.paper("scp", "mistral_7b")
    config.data.batch_size = 128
    config.data.train = ("data/scp_pretrain.jsonl",)
    config.data.prompt_max_length = 1024
    config.data.prompt_buckets = (256, 384, 512, 1024)
    config.selection.top_k = 1
    config.optim.learning_rate = 1e-4
    config.optim.accumulate = 16
    return common.local(config) if arg == "local" else config
