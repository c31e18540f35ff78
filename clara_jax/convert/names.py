"""THE table between our parameter tree and the names of other formats.

One row per array. Hugging Face and GGUF store one tensor per layer with rows as
outputs (``[out, in]``); here the layers are stacked on axis 0 and kernels are
``[in, out]``. Both directions, and the names of LoRA matrices, follow from the rows.

Sources: transformers ``modeling_{llama,...}.py``; ``gguf`` ``constants.py``.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from clara_jax.config import LoraConfig, ModelConfig


class Row(NamedTuple):
    """One array: its names, and its axes as stored by others (no input: a vector)."""

    ours: str
    hf: str
    gguf: str
    outputs: str
    inputs: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """Keys to the array, or in a layer to the module that holds it."""
        return tuple(self.ours.split("/"))


TOP_ROWS = (
    Row("embed/embedding", "model.embed_tokens", "token_embd", "V", "D"),
    Row("final_norm/scale", "model.norm", "output_norm", "D"),
    Row("head/kernel", "lm_head", "output", "V", "D"),
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""What Hugging Face calls the tables of `TOP_ROWS`."""

LAYER_ROWS = (
    Row("input_norm", "input_layernorm", "attn_norm", "D"),
    Row("attention/query", "self_attn.q_proj", "attn_q", "NH", "D"),
    Row("attention/key", "self_attn.k_proj", "attn_k", "KH", "D"),
    Row("attention/value", "self_attn.v_proj", "attn_v", "KH", "D"),
    Row("attention/query_key_value", "self_attn.qkv_proj", "attn_qkv", "QKV", "D"),
    Row("attention/query_norm", "self_attn.q_norm", "attn_q_norm", "H"),
    Row("attention/key_norm", "self_attn.k_norm", "attn_k_norm", "H"),
    Row("attention/output", "self_attn.o_proj", "attn_output", "D", "NH"),
    Row("post_norm", "post_attention_layernorm", "ffn_norm", "D"),
    Row("mlp/gate", "mlp.gate_proj", "ffn_gate", "F", "D"),
    Row("mlp/up", "mlp.up_proj", "ffn_up", "F", "D"),
    Row("mlp/gate_up", "mlp.gate_up_proj", "ffn_up", "2F", "D"),
    Row("mlp/down", "mlp.down_proj", "ffn_down", "D", "F"),
)

OUTPUT_NORM_ROWS = (
    Row(
        "attention_output_norm", "post_attention_layernorm", "post_attention_norm", "D"
    ),
    Row("post_norm", "pre_feedforward_layernorm", "ffn_norm", "D"),
    Row("mlp_output_norm", "post_feedforward_layernorm", "post_ffw_norm", "D"),
)
"""Where sublayers' outputs are normed, one of the names above means another norm."""


class TensorName(NamedTuple):
    """One tensor, its name and shape in a file, and its place in our tree.

    Attributes:
      layer: index on the stacked axis, or None when the array is not stacked.
      transpose: whether our array has the two axes the other way round.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    transpose: bool = False


def layer_rows(config: ModelConfig) -> tuple[Row, ...]:
    """Return the layer rows that a backbone of this shape has."""
    absent = {"query", "key", "value"} if config.fused_qkv else {"query_key_value"}
    absent |= {"gate", "up"} if config.fused_gate_up else {"gate_up"}
    if not config.qk_norm:
        absent |= {"query_norm", "key_norm"}
    norms = OUTPUT_NORM_ROWS if config.output_norms else ()
    if norms:
        absent |= {"post_norm"}
    return (*(row for row in LAYER_ROWS if row.path[-1] not in absent), *norms)


def linear_rows(config: ModelConfig, lora: LoraConfig | None = None) -> tuple[Row, ...]:
    """Return the layer rows that can carry an adapter, or with `lora` do."""
    rows = (row for row in layer_rows(config) if row.inputs)
    return tuple(row for row in rows if lora is None or lora.covers(row.path[-1]))


def covered_layers(config: ModelConfig, names: Iterable[str]) -> tuple[str, ...]:
    """Return `LoraConfig.layers` of adapters that have tensors of these names."""
    names, rows = tuple(names), linear_rows(config)
    present = [r for r in rows if any(f".{r.hf}.lora_" in name for name in names)]
    found = tuple(row.path[-1] for row in present)
    return found if 0 < len(found) < len(rows) else ("all",)


def hf_tensors(config: ModelConfig) -> tuple[TensorName, ...]:
    """Return the tensors of a Hugging Face file for a backbone of this shape."""
    return _backbone_tensors(config, "hf", "model.layers")


def gguf_tensors(config: ModelConfig) -> tuple[TensorName, ...]:
    """Return the tensors of a GGUF file, with shapes as they are dequantized."""
    return _backbone_tensors(config, "gguf", "blk")


def lora_tensors(
    config: ModelConfig, lora: LoraConfig, prefix: str = ""
) -> tuple[TensorName, ...]:
    """Return the LoRA matrices as PEFT names them, without the adapter's own name.

    PEFT's own files have the `prefix` ``base_model.model.``.
    """
    sizes, found = _axis_sizes(config), []
    for row in linear_rows(config, lora):
        path = ("layers", *row.path)
        a, b = (lora.rank, sizes[row.inputs]), (sizes[row.outputs], lora.rank)
        for layer in range(config.num_layers):
            stem = f"{prefix}model.layers.{layer}.{row.hf}"
            found += [
                TensorName(f"{stem}.lora_A.weight", (*path, "a"), layer, a, True),
                TensorName(f"{stem}.lora_B.weight", (*path, "b"), layer, b, True),
            ]
    return tuple(found)


def _backbone_tensors(
    config: ModelConfig, names: Literal["hf", "gguf"], layers: str
) -> tuple[TensorName, ...]:
    sizes, found = _axis_sizes(config), []
    for row in TOP_ROWS:
        if row.ours == "head/kernel" and config.tied:
            continue
        shape = tuple(sizes[axis] for axis in (row.outputs, row.inputs) if axis)
        name = f"{getattr(row, names)}.weight"
        found.append(TensorName(name, row.path, None, shape, row.path[-1] == "kernel"))
    for row in layer_rows(config):
        path, outputs = ("layers", *row.path), (sizes[row.outputs],)
        for layer in range(config.num_layers):
            stem = f"{layers}.{layer}.{getattr(row, names)}"
            weight, bias = f"{stem}.weight", f"{stem}.bias"
            if not row.inputs:
                found.append(TensorName(weight, (*path, "scale"), layer, outputs))
                continue
            shape = (*outputs, sizes[row.inputs])
            found.append(TensorName(weight, (*path, "kernel"), layer, shape, True))
            biased = config.mlp_bias if row.path[0] == "mlp" else config.qkv_bias
            if config.output_bias if row.path[-1] == "output" else biased:
                found.append(TensorName(bias, (*path, "bias"), layer, outputs))
    return tuple(found)


def _axis_sizes(config: ModelConfig) -> dict[str, int]:
    sizes = {"V": config.vocab_size, "D": config.width, "H": config.head_dim}
    sizes["NH"] = config.num_heads * config.head_dim
    sizes["KH"] = config.num_kv_heads * config.head_dim
    sizes["QKV"] = sizes["NH"] + 2 * sizes["KH"]
    return {**sizes, "F": config.mlp_dim, "2F": 2 * config.mlp_dim}
