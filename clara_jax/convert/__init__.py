"""Models in and out: Hugging Face, GGUF, PEFT and original CLaRa checkpoints."""

from clara_jax.convert.apple_writer import write_apple_checkpoint
from clara_jax.convert.folder import read_clara_settings, write_model_folder
from clara_jax.convert.hf_config import model_config_from_hf
from clara_jax.convert.hf_config_writer import hf_from_model_config
from clara_jax.convert.hf_writer import write_hf_folder
from clara_jax.convert.load import (
    load_apple,
    load_base_tokenizer,
    load_config,
    load_gguf,
    load_hf,
    load_model,
    load_peft,
)
from clara_jax.convert.loaded import ClaraSettings, ModelFolder
from clara_jax.convert.named import (
    export_adapters,
    named_folder,
    shipped_folder,
    shipped_names,
)
from clara_jax.convert.peft import read_peft_adapter, write_peft_folder
from clara_jax.convert.stored import Placement

__all__ = [
    "ClaraSettings",
    "ModelFolder",
    "Placement",
    "export_adapters",
    "hf_from_model_config",
    "load_apple",
    "load_base_tokenizer",
    "load_config",
    "load_gguf",
    "load_hf",
    "load_model",
    "load_peft",
    "model_config_from_hf",
    "named_folder",
    "read_clara_settings",
    "read_peft_adapter",
    "shipped_folder",
    "shipped_names",
    "write_apple_checkpoint",
    "write_hf_folder",
    "write_model_folder",
    "write_peft_folder",
]
