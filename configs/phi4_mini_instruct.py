"""Instruction tuning (stage 2) of Phi-4-mini-instruct on compressed documents.

Source: paper section 3.1 and table 10: batch 128, learning rate 1e-4, 453k questions
    with five documents each. Starts from the folder of stage 1; the generator's adapter
    is new, as in the original.
Command: python -m clara_jax.train --config=configs/phi4_mini_instruct.py
    --config.init_from=runs/phi4_mini_scp --config.data.train=data/instruct.jsonl
Hardware: by estimate one GPU of 40 GB (frozen weights: 7.7 GB), in microbatches of 8
    (``optim.accumulate``). Several GPUs share the rows of a microbatch.
Time and score: not measured.
Local mode: ``configs/phi4_mini_instruct.py:local`` (20 steps of 4 on 64 records).
"""

from ml_collections import ConfigDict

from configs import common, mistral_7b_instruct


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = mistral_7b_instruct.get_config()
    config.workdir = "runs/phi4_mini_instruct"
    config.init_from = "runs/phi4_mini_scp"
    return common.local(config) if arg == "local" else config
