"""Compression pretraining (stage 1) of SmolLM2-135M: CLaRa on a laptop.

Source: paper section 3.1 and table 10, but for what `common.laptop` changes: batch 8
    instead of 128 and learning rate 1e-3 instead of 1e-4. The paper has no model of
    this size.
Command: python -m clara_jax.train --config=configs/smollm2_135m_scp.py
    --config.data.train=scp_pretrain_1000.jsonl
    with ``--config.backbone=SmolLM2-135M-Instruct.Q4_1.gguf`` for a file at hand.
Hardware: 2 CPU cores, 5 GiB; or any GPU with ``--config.data.batch_size=128``.
Time: 20 steps in 29 minutes on two busy cores. Score: over these steps the loss falls
    from 2.10 (mean of the first five) to 1.73 (of the last five).
Local mode: ``configs/smollm2_135m_scp.py:local`` (20 steps of 4 on 64 records).
"""

from ml_collections import ConfigDict

from configs import common, mistral_7b_scp


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = common.laptop(mistral_7b_scp.get_config())
    config.backbone = common.BACKBONES["smollm2_135m"]
    return common.local(config) if arg == "local" else config
