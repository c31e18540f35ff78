"""End-to-end training (stage 3) of Phi-4-mini-instruct, from answers alone.

Source: paper section 3.3 and table 10: batch 32, learning rate 5e-6, 20 candidates of
    which 5 are selected, compressor frozen. Unlike in the original the documents are
    compressed once, before the first step.
Command: python -m clara_jax.train --config=configs/phi4_mini_end_to_end.py
    --config.init_from=runs/phi4_mini_instruct
    --config.data.train=data/end_to_end.jsonl
Hardware: by estimate one GPU of 40 GB (frozen weights: 7.7 GB), in microbatches of 4
    (``optim.accumulate``). Several GPUs share the rows of a microbatch.
Time and score: not measured.
Local mode: ``configs/phi4_mini_end_to_end.py:local`` (20 steps of 4 on 64 records).
"""

from ml_collections import ConfigDict

from configs import common, mistral_7b_end_to_end


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = mistral_7b_end_to_end.get_config()
    config.workdir = "runs/phi4_mini_end_to_end"
    config.init_from = "runs/phi4_mini_instruct"
    return common.local(config) if arg == "local" else config
