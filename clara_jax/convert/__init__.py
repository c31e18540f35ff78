"""Reading what exists: Hugging Face models, GGUF files, original CLaRa checkpoints."""

from clara_jax.convert.apple_writer import write_apple_checkpoint
from clara_jax.convert.folder import (
    ClaraSettings,
    ModelFolder,
    read_clara_settings,
    write_model_folder,
)
from clara_jax.convert.hf_config import model_config_from_hf
from clara_jax.convert.load import (
    load_apple,
    load_config,
    load_gguf,
    load_hf,
    load_model,
)

__all__ = [
    "ClaraSettings",
    "ModelFolder",
    "load_apple",
    "load_config",
    "load_gguf",
    "load_hf",
    "load_model",
    "model_config_from_hf",
    "read_clara_settings",
    "write_apple_checkpoint",
    "write_model_folder",
]
