"""Validated settings: what every part is built from.

Each dataclass checks itself when it is made and names the field that is wrong.
`parse` turns a plain mapping (JSON, ``ConfigDict.to_dict()``) into one and refuses keys
it does not know; `to_dict` is its inverse.
"""

from clara_jax.config.model import (
    DTYPES,
    LORA_LAYERS,
    QUANTIZATIONS,
    REMAT_POLICIES,
    ROW_MARKS,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    RopeConfig,
    SelectionConfig,
)
from clara_jax.config.parsing import check_choices, parse, require, to_dict
from clara_jax.config.run import (
    DataConfig,
    HooksConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
)

__all__ = [
    "DTYPES",
    "LORA_LAYERS",
    "QUANTIZATIONS",
    "REMAT_POLICIES",
    "ROW_MARKS",
    "DataConfig",
    "HooksConfig",
    "LoraConfig",
    "MemoryConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "RopeConfig",
    "RunConfig",
    "SelectionConfig",
    "check_choices",
    "parse",
    "require",
    "to_dict",
]
