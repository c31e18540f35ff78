"""End-to-end training (stage 3) of Mistral-7B-Instruct-v0.2, from answers alone.

Source: paper section 3.3 and table 10: batch 32, learning rate 5e-6, 20 candidates of
    which 5 are selected, compressor frozen. Unlike in the original the documents are
    compressed once, before the first step.
Command: python -m clara_jax.train --config=configs/mistral_7b_end_to_end.py
    --config.init_from=runs/mistral_7b_instruct
    --config.data.train=data/end_to_end.jsonl
Hardware: by estimate one GPU of 80 GB (frozen weights: 14.5 GB), in microbatches of 4
    (``optim.accumulate``). Several GPUs share the rows of a microbatch.
Time and score: not measured.
Local mode: ``configs/mistral_7b_end_to_end.py:local`` (20 steps of 4 on 64 records).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = common.paper("end_to_end", "mistral_7b")
    config.backbone = ""
    config.init_from = "runs/mistral_7b_instruct"
    config.data.batch_size = 32
    config.data.train = ("data/end_to_end.jsonl",)
    config.data.prompt_max_length = 1024
    config.data.prompt_buckets = (192, 256, 512, 1024)
    config.data.candidates = 20
    config.data.cache_vectors = True
    config.selection.top_k = 5
    # The original's own script keeps it constant where the paper says cosine:
    # --config.optim.schedule=constant
    config.optim.learning_rate = 5e-6
    config.optim.accumulate = 8
    return common.local(config) if arg == "local" else config
