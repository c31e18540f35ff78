"""The frozen backbone: one transformer, its cache, adapters and known shapes."""

from clara_jax.model.adapters import (
    abstract_variables,
    count,
    init_backbone,
    init_lora,
    merge_lora,
)
from clara_jax.model.attention import Cache, zeros_cache
from clara_jax.model.param_axes import logical_axes
from clara_jax.model.presets import PRESETS
from clara_jax.model.quantized import dequantize_params, quantize_params
from clara_jax.model.transformer import Transformer

__all__ = [
    "PRESETS",
    "Cache",
    "Transformer",
    "abstract_variables",
    "count",
    "dequantize_params",
    "init_backbone",
    "init_lora",
    "logical_axes",
    "merge_lora",
    "quantize_params",
    "zeros_cache",
]
