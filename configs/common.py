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
    fields.synthesize = ConfigDict()
    fields.mix = ConfigDict()
    fields.report = ConfigDict()
    return fields.lock()


def paper(stage: str, name: str) -> ConfigDict:
    """The paper's settings of a stage (table 10 and appendix).

    LoRA on all linear layers, rank 16, alpha 32, dropout 0.1; AdamW (0.9, 0.95), cosine
    to a tenth, 3% warm-up, clipping at 1.0, one epoch; documents up to 256 tokens, here
    at 16x. The original's own stage-3 script keeps the rate constant where the paper
    says cosine: ``--config.optim.schedule=constant``.

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
    if stage == "scp":
        config.data.train = ("data/scp_pretrain.jsonl",)
        config.data.prompt_max_length = 1024
        config.data.prompt_buckets = (256, 384, 512, 1024)
        config.selection.top_k = 1
    elif stage == "instruct":
        config.backbone = ""
        config.init_from = f"runs/{name}_scp"
        config.data.train = ("data/instruct.jsonl",)
        config.data.prompt_max_length = 2048
        config.data.prompt_buckets = (256, 512, 1024, 2048)
        config.selection.top_k = 5
    else:
        config.backbone = ""
        config.init_from = f"runs/{name}_instruct"
        config.data.train = ("data/end_to_end.jsonl",)
        config.data.prompt_max_length = 1024
        config.data.prompt_buckets = (192, 256, 512, 1024)
        config.data.candidates = 20
        config.data.cache_vectors = True
        config.selection.top_k = 5
    if stage == "end_to_end":
        config.data.batch_size = 32
        config.optim.learning_rate = 5e-6
    else:
        config.data.batch_size = 128
        config.optim.learning_rate = 1e-4
    return config


def smollm2(stage: str) -> ConfigDict:
    """SmolLM2-135M-Instruct: the paper's settings at the size of a laptop.

    Float32, a batch of 8 and ten times the paper's learning rates, for a model fifty
    times smaller; cut prompts where the paper's are longer.

    Args:
      stage: as of `paper`.
    """
    config = paper(stage, "smollm2_135m")
    config.dtype = config.param_dtype = "float32"  # faster than bfloat16 on a CPU
    config.data.batch_size = 8
    config.data.too_long = "cut"
    config.optim.learning_rate *= 10
    config.data.prompt_max_length = 600
    # Every length met is a compilation, of about a minute on two cores.
    config.data.doc_buckets = (160,)
    config.data.prompt_buckets = (256, 384)
    config.hooks.log_every = 1
    config.hooks.checkpoint_every = 50
    if stage == "instruct":
        config.selection.top_k = 2
    elif stage == "end_to_end":
        config.data.candidates = 10
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
