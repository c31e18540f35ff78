"""Compression pretraining (stage 1) of Phi-4-mini-instruct, 16x.

Source: paper section 3.1 and table 10: batch 128, learning rate 1e-4, LoRA rank 16, MSE
    weight 0.1, one epoch over 2,000,000 simple and 2,000,000 complex question sets and
    1,966,291 paraphrases.
Command: python -m clara_jax.train --config=configs/phi4_mini_scp.py
    --config.data.train=data/scp_pretrain.jsonl
Hardware: by estimate one GPU of 40 GB (frozen weights: 7.7 GB), in microbatches of 8
    (``optim.accumulate``). Several GPUs share the rows of a microbatch.
Time and score: not measured.
Local mode: ``configs/phi4_mini_scp.py:local`` (20 steps of 4 on 64 records).
"""

from ml_collections import ConfigDict

from configs import common, mistral_7b_scp


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = mistral_7b_scp.get_config()
    config.workdir = "runs/phi4_mini_scp"
    config.backbone = common.BACKBONES["phi4_mini"]
    return common.local(config) if arg == "local" else config
