"""Instruction tuning (stage 2) of Mistral-7B-Instruct-v0.2 on compressed documents.

Source: paper section 3.1 and table 10: batch 128, learning rate 1e-4, 453k questions
    with five documents each. Starts from the folder of stage 1; the generator's adapter
    is new, as in the original.
Command: python -m clara_jax.train --config=configs/mistral_7b_instruct.py
    --config.init_from=runs/mistral_7b_scp --config.data.train=data/instruct.jsonl
Hardware: by estimate one GPU of 80 GB (frozen weights: 14.5 GB), in microbatches of 8
    (``optim.accumulate``). Several GPUs share the rows of a microbatch.
Time and score: not measured.
Local mode: ``configs/mistral_7b_instruct.py:local`` (20 steps of 4 on 64 records).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = common.paper("instruct", "mistral_7b")
    config.backbone = ""
    config.init_from = "runs/mistral_7b_scp"
    config.data.batch_size = 128
    config.data.train = ("data/instruct.jsonl",)
    config.data.prompt_max_length = 2048
    config.data.prompt_buckets = (256, 512, 1024, 2048)
    config.selection.top_k = 5
    config.optim.learning_rate = 1e-4
    config.optim.accumulate = 16
    return common.local(config) if arg == "local" else config
