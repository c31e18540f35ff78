"""What all experiments share: every field with its default, and the paper's settings.

Experiments call `base` and change what they are about. Unknown fields fail.
"""

from ml_collections import ConfigDict

from clara_jax.config import RunConfig, to_dict

BACKBONES = {
    "mistral_7b": "mistralai/Mistral-7B-Instruct-v0.2",
    "phi4_mini": "microsoft/Phi-4-mini-instruct",
    "smollm2_135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""Short names, as in folders and presets, to hub names."""


def base(stage: str, workdir: str, backbone: str) -> ConfigDict:
    """All fields of `RunConfig` with their defaults, and those of pipelines, empty."""
    config = RunConfig(stage=stage, workdir=workdir, backbone=backbone)
    fields = ConfigDict(to_dict(config))
    fields.stages = ()
    fields.quickstart = ConfigDict()
    fields.mix = ConfigDict()
    fields.report = ConfigDict()
    return fields.lock()


def paper(stage: str, name: str) -> ConfigDict:
    """The settings that all stages share (paper table 10 and appendix).

    LoRA on all linear layers, rank 16, alpha 32, dropout 0.1; AdamW (0.9, 0.95), cosine
    to a tenth, 3% warm-up, clipping at 1.0, one epoch; documents up to 256 tokens, here
    at 16x.

    Args:
      stage: ``scp``, ``instruct`` or ``end_to_end``.
      name: of the backbone, out of `BACKBONES`.
    """
    config = base(stage, f"runs/{name}_{stage}", BACKBONES[name])
    config.dtype = "bfloat16"
    config.param_dtype = "bfloat16"
    config.remat = "full"
    config.memory.doc_max_length = 256
    config.memory.compression_rate = 16
    config.data.doc_buckets = (96, 160, 224, 275)
    config.hooks.checkpoint_every = 500
    return config


def laptop(config: ConfigDict) -> ConfigDict:
    """SmolLM2-135M-Instruct in place of a 7B model, on two CPU cores.

    Float32, a batch of 8 and ten times the paper's learning rates, for a model fifty
    times smaller; cut prompts where the paper's are longer.
    """
    config.workdir = config.workdir.replace("mistral_7b", "smollm2_135m")
    config.dtype = config.param_dtype = "float32"  # faster than bfloat16 on a CPU
    config.data.batch_size = 8
    config.data.too_long = "cut"
    config.optim.accumulate = 1
    config.optim.learning_rate *= 10
    config.data.prompt_max_length = 600
    # Every length met is a compilation, of about a minute on two cores.
    config.data.doc_buckets = (160,)
    config.data.prompt_buckets = (256, 384)
    config.hooks.log_every = 1
    config.hooks.checkpoint_every = 50
    return config


def local(config: ConfigDict) -> ConfigDict:
    """A few small steps on the first records, to see that everything fits together."""
    config.workdir += "_local"
    config.data.batch_size = 4
    config.data.limit = 64
    config.optim.accumulate = 1
    config.optim.steps = 20
    config.hooks.log_every = 1
    config.hooks.tensorboard = False
    return config
