"""THE table between our parameter tree and the names of other formats.

One row per array. Hugging Face and GGUF store one tensor per layer with rows as
outputs (``[out, in]``); here the layers are stacked on axis 0 and kernels are
``[in, out]``. Both directions, and the names of LoRA matrices, follow from the rows.

Sources: transformers ``modeling_{llama,mistral,qwen2,qwen3,phi3}.py``; ``gguf``
``constants.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from clara_jax.config import LoraConfig, ModelConfig
from clara_jax.errors import ClaraError
from clara_jax.shapes import Params


class Row(NamedTuple):
    """One array: its names, and its axes as stored by others (no input: a vector)."""

    ours: str
    hf: str
    gguf: str
    outputs: str
    inputs: str = ""


TOP_ROWS = (
    Row("embed/embedding", "model.embed_tokens", "token_embd", "V", "D"),
    Row("final_norm/scale", "model.norm", "output_norm", "D"),
    Row("head/kernel", "lm_head", "output", "V", "D"),
)

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


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """Lengths of the axes that the rows name."""
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    return {
        "V": config.vocab_size,
        "D": config.width,
        "H": config.head_dim,
        "NH": heads,
        "KH": kv_heads,
        "QKV": heads + 2 * kv_heads,
        "F": config.mlp_dim,
        "2F": 2 * config.mlp_dim,
    }


def layer_rows(config: ModelConfig) -> tuple[Row, ...]:
    """The layer rows that a backbone of this shape has."""
    absent = {
        *(
            ("attention/query", "attention/key", "attention/value")
            if config.fused_qkv
            else ("attention/query_key_value",)
        ),
        *(("mlp/gate", "mlp/up") if config.fused_gate_up else ("mlp/gate_up",)),
        *(() if config.qk_norm else ("attention/query_norm", "attention/key_norm")),
    }
    return tuple(row for row in LAYER_ROWS if row.ours not in absent)


def has_bias(config: ModelConfig, row: Row) -> bool:
    """Whether the linear layer of this row carries a bias."""
    room, _, name = row.ours.partition("/")
    if not row.inputs:
        return False
    if room == "mlp":
        return config.mlp_bias
    return config.output_bias if name == "output" else config.qkv_bias


@dataclasses.dataclass(frozen=True)
class TensorName:
    """One tensor of a file and its place in our tree.

    Attributes:
      name: as the file calls it.
      path: keys from the root of our tree to the array.
      layer: index on the stacked axis, or None when the array is not stacked.
      shape: as stored in the file.
      transpose: whether our array has the two axes the other way round.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    transpose: bool = False


def hf_tensors(config: ModelConfig) -> tuple[TensorName, ...]:
    """Tensors of a Hugging Face file for a backbone of this shape."""
    return _backbone_tensors(config, "hf", "model.layers")


def gguf_tensors(config: ModelConfig) -> tuple[TensorName, ...]:
    """Tensors of a GGUF file; shapes as ``gguf.quants.dequantize`` gives them."""
    return _backbone_tensors(config, "gguf", "blk")


def lora_tensors(
    config: ModelConfig, lora: LoraConfig, prefix: str = ""
) -> tuple[TensorName, ...]:
    """LoRA matrices as PEFT names them, without the adapter's own name.

    Args:
      config: shape of the backbone.
      lora: rank and covered layers.
      prefix: put before every name (PEFT's own files: ``base_model.model.``).

    Returns:
      ``...lora_A.weight`` ``[R, in]`` and ``...lora_B.weight`` ``[out, R]``.
    """
    sizes = axis_sizes(config)
    found = []
    for row in layer_rows(config):
        path = ("layers", *row.ours.split("/"))
        if not row.inputs or not lora.covers(path[-1]):
            continue
        for layer in range(config.num_layers):
            stem = f"{prefix}model.layers.{layer}.{row.hf}"
            for ours, theirs, shape in (
                ("a", "lora_A", (lora.rank, sizes[row.inputs])),
                ("b", "lora_B", (sizes[row.outputs], lora.rank)),
            ):
                found.append(
                    TensorName(
                        f"{stem}.{theirs}.weight", (*path, ours), layer, shape, True
                    )
                )
    return tuple(found)


def _backbone_tensors(
    config: ModelConfig, names: str, layers: str
) -> tuple[TensorName, ...]:
    sizes = axis_sizes(config)
    found = []
    for row in TOP_ROWS:
        if row.ours == "head/kernel" and config.tied:
            continue
        path = tuple(row.ours.split("/"))
        shape = tuple(sizes[axis] for axis in (row.outputs, row.inputs) if axis)
        name = f"{getattr(row, names)}.weight"
        found.append(TensorName(name, path, None, shape, path[-1] == "kernel"))
    for row in layer_rows(config):
        path = ("layers", *row.ours.split("/"))
        outputs = (sizes[row.outputs],)
        for layer in range(config.num_layers):
            stem = f"{layers}.{layer}.{getattr(row, names)}"
            if not row.inputs:
                place = (*path, "scale")
                found.append(TensorName(f"{stem}.weight", place, layer, outputs))
                continue
            shape = (*outputs, sizes[row.inputs])
            place = (*path, "kernel")
            found.append(TensorName(f"{stem}.weight", place, layer, shape, True))
            if has_bias(config, row):
                place = (*path, "bias")
                found.append(TensorName(f"{stem}.bias", place, layer, outputs))
    return tuple(found)


def tree_shapes(tensors: Iterable[TensorName]) -> dict[tuple[str, ...], tuple]:
    """Shapes of our arrays, by path, for a set of tensors."""
    shapes: dict[tuple[str, ...], tuple] = {}
    for tensor in tensors:
        shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
        if tensor.layer is not None:
            layers = max(tensor.layer + 1, shapes.get(tensor.path, (0,))[0])
            shape = (layers, *shape)
        shapes[tensor.path] = shape
    return shapes


class TreeBuilder:
    """Our tree, each array allocated once and filled tensor by tensor in any order.

    A tensor is copied straight to its place (transposed and cast on the way, in blocks
    of rows), so that no more than one whole tensor need exist beside the tree.

    Args:
      tensors: everything that must come.
      dtype: type of our arrays.
      where: the file, for errors.
    """

    def __init__(self, tensors: Iterable[TensorName], dtype: Any, where: str):
        tensors = tuple(tensors)
        self._where = where
        self._wanted = {tensor.name: tensor for tensor in tensors}
        self._dtype, self._shapes = dtype, tree_shapes(tensors)
        self._arrays: dict[tuple[str, ...], np.ndarray] = {}

    @property
    def wanted(self) -> dict[str, TensorName]:
        """Tensors that have not come yet, by name."""
        return self._wanted

    def check(self, name: str, shape: tuple[int, ...], where: str = "") -> TensorName:
        """Look a tensor up, and refuse unknown names and wrong shapes."""
        where = where or self._where
        tensor = self._wanted.get(name)
        if tensor is None:
            raise ClaraError(
                f"{where}: tensor '{name}' is not expected for this architecture"
            )
        if tuple(shape) != tensor.shape:
            raise ClaraError(
                f"{where}: tensor '{name}' has shape {list(shape)}, but the "
                f"configuration asks for {list(tensor.shape)}"
            )
        return tensor

    def put(self, name: str, array: np.ndarray, where: str = "") -> None:
        """Copy one tensor to its place.

        Raises:
          ClaraError: a name that is not wanted (any more), or a wrong shape.
        """
        tensor = self.check(name, array.shape, where)
        if tensor.path not in self._arrays:
            shape = self._shapes[tensor.path]
            self._arrays[tensor.path] = np.empty(shape, self._dtype)
        target = self._arrays[tensor.path]
        if tensor.layer is not None:
            target = target[tensor.layer]
        copy_rows(target.T if tensor.transpose else target, array)
        del self._wanted[name]

    def finish(self) -> Params:
        """The nested tree.

        Raises:
          ClaraError: a tensor has not come.
        """
        if self._wanted:
            names = list(self._wanted)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ClaraError(f"{self._where}: tensor '{names[0]}'{more} is missing")
        tree: dict[str, Any] = {}
        for path in self._shapes:
            array = self._arrays[path]
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = array
        return tree


def copy_rows(target: np.ndarray, source: np.ndarray, rows: int = 256) -> None:
    """Copy in blocks of rows, which transposes twice as fast as in one go."""
    for start in range(0, len(source), rows):
        target[start : start + rows] = source[start : start + rows]


def extract(tree: Params, tensor: TensorName) -> np.ndarray:
    """One tensor as the other format stores it: the inverse of `TreeBuilder.put`."""
    for key in tensor.path:
        tree = tree[key]
    array = tree if tensor.layer is None else tree[tensor.layer]
    return np.asarray(array.T if tensor.transpose else array)
