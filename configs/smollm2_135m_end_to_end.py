"""End-to-end training (stage 3) of SmolLM2-135M: retrieval from answers alone.

Source: paper section 3.3 and table 10, but for what `common.laptop` changes (batch,
    learning rate, ten candidates instead of twenty: HotpotQA's own paragraphs). The
    documents are compressed once, before the first step.
Command: python -m clara_jax.train --config=configs/smollm2_135m_end_to_end.py
    --config.init_from=runs/smollm2_135m_instruct
    --config.data.train=hotpotqa_train.json
Hardware: 2 CPU cores, 5 GiB. Time: 10 steps of the local mode in 4 minutes on two busy
    cores, after 3 minutes for the vectors of 400 documents. Score: not measured.
Local mode: ``configs/smollm2_135m_end_to_end.py:local``.
"""

from ml_collections import ConfigDict

from configs import common, mistral_7b_end_to_end


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or its ``local`` mode."""
    config = common.laptop(mistral_7b_end_to_end.get_config())
    config.init_from = "runs/smollm2_135m_instruct"
    config.data.candidates = 10
    return common.local(config) if arg == "local" else config
