"""Rotary positions as ``config.json`` says them, as a `RopeConfig`, and back.

Versions 4 and 5 of transformers are read; the words of version 4 are written, which
version 5 reads too.

Source: transformers ``modeling_rope_utils.py``, defaults included.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clara_jax.config import RopeConfig
from clara_jax.convert.config_fields import Fields
from clara_jax.errors import ClaraError
from clara_jax.model.rope import attention_factor

LAYER_KINDS = ("full_attention", "sliding_attention")
"""Layers that see all, and layers under a window, as ``layer_types`` calls them."""

_ROPE_KINDS: dict[Any, str] = {
    "default": "",
    "linear": "factor",
    "llama3": "factor original_max_position low_frequency high_frequency",
    "yarn": "factor original_max_position beta_fast beta_slow attention_factor",
    "longrope": "factor original_max_position short_factors long_factors "
    "attention_factor",
}
"""Kinds of rope, and the fields of `RopeConfig` that each has."""

_ROPE_NAMES = {
    "original_max_position": "original_max_position_embeddings",
    "low_frequency": "low_freq_factor",
    "high_frequency": "high_freq_factor",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
"""What these fields are called there, where it is something else."""

_ROPE_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 0.0}


def read_rope(fields: Fields, head_dim: int, phi: bool) -> RopeConfig:
    """Return the rope of all layers; `phi` has names of its own for ``longrope``."""
    values = fields.values
    group = values.get("rope_parameters") or values.get("rope_scaling") or {}
    plain = isinstance(group, Mapping)
    if not plain or any(isinstance(value, Mapping) for value in group.values()):
        raise fields.error("rope_parameters must be one plain group for all layers")
    inner = ("rope_theta", "partial_rotary_factor")
    rope = Fields({**{k: values.get(k) for k in inner}, **group}, fields.where)
    kind: Any = rope.get("rope_type", str, "") or rope.get("type", str, "default")
    if phi and kind in ("su", "yarn"):
        kind = "longrope"
    if kind not in _ROPE_KINDS:
        known = ", ".join(_ROPE_KINDS)
        raise fields.error(
            f"rope kind '{kind}' is not supported; supported are {known}"
        )
    fraction = rope.get("partial_rotary_factor", float, 1.0)
    rotated = int(head_dim * fraction)
    if rotated <= 0 or rotated % 2:
        raise fields.error(
            f"{rotated} of {head_dim} features per head would be rotated (head_dim, "
            "partial_rotary_factor); the number must be even"
        )
    longest = fields.get("max_position_embeddings", int)
    if longest < 2:
        name = "max_position_embeddings"
        raise fields.error(f"field '{name}' is {longest}; no text is that short")
    theta = rope.get("rope_theta", float, 10000.0)
    found: dict = {"theta": theta, "fraction": fraction, "max_position": longest}
    if kind not in ("default", "linear"):
        name = "original_max_position_embeddings"
        top = fields.get(name, int, 0)
        original = top or rope.get(name, int, 0) or longest
        factor = rope.get("factor", float, 0.0)
        if original < 2 or factor < 0 or rope.values.get("factor") == 0:
            raise fields.error(
                f"rope kind '{kind}' needs a factor above 0 and an {name} above 1"
            )
        found["original_max_position"] = original
        if kind != "llama3":
            by_length = bool(top) and kind == "longrope"
            found["factor"] = longest / original if by_length or not factor else factor
    for ours in _ROPE_KINDS[kind].split():
        theirs = _ROPE_NAMES.get(ours, ours)
        if ours in ("short_factors", "long_factors"):
            found[ours] = rope.numbers(theirs, rotated // 2)
        elif ours not in found:
            found[ours] = rope.get(theirs, float, _ROPE_DEFAULTS.get(ours))
    if kind == "yarn":
        if rope.values.get("truncate") is False:
            raise fields.error("rope kind 'yarn' with truncate off is not supported")
        above = rope.get("mscale", float, 0.0)
        below = rope.get("mscale_all_dim", float, 0.0)
        if above and below and not found["attention_factor"]:
            log = math.log(max(found["factor"], 1.0))
            scale = (0.1 * above * log + 1.0) / (0.1 * below * log + 1.0)
            found["attention_factor"] = scale
    return filled(RopeConfig(kind=kind, **found))


def read_ropes(fields: Fields, head_dim: int) -> tuple[RopeConfig, RopeConfig]:
    """Return Gemma's ropes of layers that see all, and of those under a window."""
    values = fields.values
    groups = values.get("rope_parameters")
    if groups is None:
        groups = {LAYER_KINDS[0]: values.get("rope_scaling")}
    good = isinstance(groups, Mapping) and all(kind in LAYER_KINDS for kind in groups)
    if not good or not all(isinstance(g, Mapping | None) for g in groups.values()):
        raise fields.error(
            f"rope_parameters must hold one group for each of {', '.join(LAYER_KINDS)}"
        )

    def read(kind: str, theta: str) -> RopeConfig:
        group = {"rope_theta": values[theta], **(groups.get(kind) or {})}
        inner = Fields({**values, "rope_parameters": group}, fields.where)
        return read_rope(inner, head_dim, False)

    thetas = ("rope_theta", "rope_local_base_freq")
    rope, window_rope = map(read, LAYER_KINDS, thetas)
    return rope, window_rope


def filled(rope: RopeConfig) -> RopeConfig:
    """Return the same rope with what its kind fills in by rule."""
    if rope.kind == "longrope" and not rope.factor:
        ratio = rope.max_position / rope.original_max_position
        rope = dataclasses.replace(rope, factor=ratio)
    if rope.kind in ("longrope", "yarn"):
        rope = dataclasses.replace(rope, attention_factor=attention_factor(rope))
    return rope


def written_rope(rope: RopeConfig, phi: bool) -> dict[str, Any]:
    """Return the fields that `read_rope` reads as this rope."""
    if not phi and rope.fraction != 1.0:
        raise no_form(f"only Phi-3 rotates a part of each head ({rope.fraction})")
    if phi and rope.kind not in ("default", "longrope"):
        raise no_form(f"Phi-3 with rope kind '{rope.kind}'")
    values: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if phi:
        values["partial_rotary_factor"] = rope.fraction
        original = rope.original_max_position or rope.max_position
        values["original_max_position_embeddings"] = original
    if rope.kind == "default":
        return values
    group: dict[str, Any] = {"rope_type": rope.kind}
    for ours in _ROPE_KINDS[rope.kind].split():
        value = getattr(rope, ours)
        value = list(value) if isinstance(value, tuple) else value
        group[_ROPE_NAMES.get(ours, ours)] = value
    if rope.kind == "longrope":
        if rope == filled(dataclasses.replace(rope, attention_factor=0.0)):
            del group["attention_factor"]
        if phi:  # for which transformers 4 wants exactly these
            kept = ("short_factor", "long_factor", "attention_factor")
            group = {"type": "longrope", **{k: group[k] for k in kept if k in group}}
    return {**values, "rope_scaling": group}


def no_form(why: str) -> ClaraError:
    """Return the error of a backbone that ``config.json`` cannot describe."""
    return ClaraError(f"the backbone has no Hugging Face form: {why}")
