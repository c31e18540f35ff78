"""Instruction tuning (stage 2) of SmolLM2-135M on compressed documents.

Source: paper section 3.1 and table 10, but for what `common.laptop` changes (batch,
    learning rate, two documents a question instead of five). Starts from the folder of
    stage 1; the generator's adapter is new, as in the original.
Command: python -m clara_jax.train --config=configs/smollm2_135m_instruct.py
    --config.init_from=runs/smollm2_135m_scp
    --config.data.train=hotpotqa_train.json
Hardware: 2 CPU cores, 5 GiB. Time: 10 steps of the local mode in 5 minutes on two busy
    cores. Score: not measured.
Local mode: ``configs/smollm2_135m_instruct.py:local``.
"""

from ml_collections import ConfigDict

from configs import common, mistral_7b_instruct


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = common.laptop(mistral_7b_instruct.get_config())
    config.init_from = "runs/smollm2_135m_scp"
    config.selection.top_k = 2
    return common.local(config) if arg == "local" else config
