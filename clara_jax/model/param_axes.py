"""Logical axes of every array of a model, by its name and place in the tree."""

_LINEAR: dict[str, tuple[str, str]] = {
    "query": ("width", "heads"),
    "key": ("width", "kv_heads"),
    "value": ("width", "kv_heads"),
    "query_key_value": ("width", "heads"),
    "output": ("heads", "width"),
    "gate": ("width", "mlp"),
    "up": ("width", "mlp"),
    "gate_up": ("width", "mlp"),
    "down": ("mlp", "width"),
}
_TABLES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("embed", "embedding"): ("vocab", "width"),
    ("head", "kernel"): ("width", "vocab"),
}


def logical_axes(path: tuple[str, ...], rank: int) -> tuple[str | None, ...]:
    """Return the axes of one array of a backbone, an adapter or an optimizer state.

    They are names of `clara_jax.sharding.ShardingRules`; None for norms, special rows
    and scalars, which are small. The last two names of its path say what it is.

    Example::

      logical_axes(("params", "layers", "mlp", "gate", "kernel"), 3)
      # ("layers", "width", "mlp")
    """
    if path[-2:] in _TABLES:
        return _TABLES[path[-2:]]
    layer, entry = path[-2:] if len(path) > 1 else ("", "")
    axes: tuple[str | None, ...] = ()
    if layer in _LINEAR:
        inputs, outputs = _LINEAR[layer]
        axes = {
            "kernel": (inputs, outputs),
            "codes": (inputs, outputs),
            "scales": (inputs, outputs),
            "bias": (outputs,),
            "a": (_narrow(inputs), "lora_rank"),
            "b": ("lora_rank", _narrow(outputs)),
        }.get(entry, ())
    if not axes:
        return (None,) * rank
    return ("layers",) * (rank - len(axes)) + axes


def _narrow(axis: str) -> str:
    # An adapter has one wide axis, for all the devices that its kernel has two for.
    return axis if axis == "width" else "lora_features"


def gathered_axes(layer: str | None) -> tuple[str | None, str | None]:
    """Return the axes of a linear layer's inputs and outputs while it multiplies.

    Devices that split the batch, as those along ``fsdp`` do, each need the kernel
    whole, and all devices that of a layer which the table does not have.
    """
    inputs, outputs = _LINEAR.get(layer or "", (None, None))
    return (
        None if inputs == "width" else inputs,
        None if outputs == "width" else outputs,
    )
