"""Models in and out: Hugging Face, GGUF, PEFT and original CLaRa checkpoints."""

from clara_jax.convert.apple import write_apple_checkpoint
from clara_jax.convert.hf import write_hf_folder
from clara_jax.convert.hf_config import hf_from_model_config, model_config_from_hf
from clara_jax.convert.load import (
    load_base_tokenizer,
    load_config,
    load_model,
    named_folder,
    require_model,
    shipped_folder,
    shipped_names,
)
from clara_jax.convert.model_folder import (
    ClaraSettings,
    ModelFolder,
    write_model_folder,
)
from clara_jax.convert.peft import export_adapters, read_peft_adapter, write_peft_folder
from clara_jax.convert.tensors import Placement

__all__ = [
    "ClaraSettings",
    "ModelFolder",
    "Placement",
    "export_adapters",
    "hf_from_model_config",
    "load_base_tokenizer",
    "load_config",
    "load_model",
    "model_config_from_hf",
    "named_folder",
    "read_peft_adapter",
    "require_model",
    "shipped_folder",
    "shipped_names",
    "write_apple_checkpoint",
    "write_hf_folder",
    "write_model_folder",
    "write_peft_folder",
]
