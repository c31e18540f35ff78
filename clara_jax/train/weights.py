"""What a run starts from: backbone, tokenizer, and which adapters are new.

| stage | compressor | memory and marks | generator | reasoner |
|---|---|---|---|---|
| scp | new | new | new | - |
| instruct | of ``init_from`` | of ``init_from`` | new (``b = 0``), as in the original | dropped, as in the original |
| end_to_end | of ``init_from`` | of ``init_from`` | of ``init_from`` | of ``init_from``, else a copy of the compressor |
| rerank | of ``init_from`` | of ``init_from`` | kept if there | as end_to_end |
| text, closed_book | kept if there | kept if there, else new | new | kept if there |

The table itself is `clara_jax.stages`; ``reinit`` names more that start afresh. ``lm``
trains the backbone and has no adapters.
"""  # noqa: E501

import dataclasses
import operator
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.clara import Network, init_rows, weights_sample
from clara_jax.config import ModelConfig, RunConfig, require
from clara_jax.convert import ClaraSettings, ModelFolder, Placement, load_model
from clara_jax.distributed import from_host, to_host
from clara_jax.errors import ClaraError
from clara_jax.model import (
    PRESETS,
    Transformer,
    dequantize_params,
    init_backbone,
    init_lora,
    quantize_params,
)
from clara_jax.shapes import Key, Params
from clara_jax.stages import STAGES
from clara_jax.text import load_tokenizer

_WITHOUT_ROWS = {"<image_soft_token>"}
"""Tokens that may have no embedding, as text has none of them: Gemma 3's for images."""


@dataclasses.dataclass(frozen=True)
class Start:
    """All that a run is made of, before its first step.

    Attributes:
      network: all that is frozen. In ``lm``, which trains them, ``params`` are None.
      tokenizer: of the base, before special tokens are added.
      reference: what ``clara.json`` will name as the backbone.
      frozen: a sample of its weights, before they were quantized.
    """

    network: Network
    trainable: dict[str, Params]
    tokenizer: Any
    eos_ids: tuple[int, ...] = ()
    reference: str = "backbone"
    frozen: dict[str, str] = dataclasses.field(default_factory=dict)

    def folder(self, config: RunConfig, trainable: dict[str, Params]) -> ModelFolder:
        """Return the model folder that holds the result of training."""
        model, backbone = self.network.model, self.network.backbone
        adapters = to_host({**self.network.adapters, **trainable})
        rows = to_host(backbone.get("rows"))
        trains_backbone = STAGES[config.stage].trains_backbone
        # Only a folder with a backbone of its own holds these. Files hold no codes:
        # such a backbone is written as it was used.
        whole = not trains_backbone and self.reference == "backbone"
        params = to_host(backbone["params"]) if whole else {}
        base = ModelFolder(
            config=model.config,
            params=dequantize_params(params, model.config.param_dtype),
            tokenizer=self.tokenizer,
            eos_ids=self.eos_ids,
        )
        if trains_backbone:
            return dataclasses.replace(base, params=adapters["backbone"])
        settings = ClaraSettings(
            memory=config.memory,
            lora=config.lora,
            selection=config.selection,
            text_vocab=model.text_vocab,
            backbone=self.reference,
            stage=config.stage,
            # Of the weights as they are written, where these are.
            frozen={} if whole else self.frozen,
        )
        return dataclasses.replace(base, clara=settings, adapters=adapters, rows=rows)


def load_start(config: RunConfig, key: Key, placement: Placement) -> Start:
    """Load or make everything that a run starts from, where `placement` puts it.

    Raises:
      ClaraError: something is missing in ``init_from``, or does not fit the config.
    """
    # Weights that are to be quantized are read to the host.
    where = placement if config.quantize == "none" else None
    earlier = None
    if config.init_from:
        named = "" if config.backbone.startswith("random:") else config.backbone
        earlier = load_model(
            config.init_from, config.param_dtype, base=named, placement=where
        )
    name = config.backbone
    if name.startswith("random:"):
        base = _random_base(config, name.removeprefix("random:"), key, placement)
    else:
        base = earlier
        if name and (earlier is None or earlier.clara is None):
            base = load_model(name, config.param_dtype, placement=where)
        assert base is not None
        if config.tokenizer:
            base = dataclasses.replace(base, tokenizer=load_tokenizer(config.tokenizer))
    shape = dataclasses.replace(base.config, dtype=config.dtype, remat=config.remat)
    text_vocab = len(base.tokenizer)
    beyond = list(range(shape.vocab_size, text_vocab))
    if set(base.tokenizer.convert_ids_to_tokens(beyond)) - _WITHOUT_ROWS:
        raise ClaraError(
            f"the tokenizer has {text_vocab} tokens, but the backbone only "
            f"{shape.vocab_size} embedding rows; give the backbone's own tokenizer"
        )
    model = make_model(config, shape, text_vocab)
    given = config, model, base.params, earlier, key, placement
    frozen = {}
    if not STAGES[config.stage].trains_backbone:
        frozen = weights_sample(base.params, text_vocab)
    return Start(
        *make_network(*given),
        tokenizer=base.tokenizer,
        eos_ids=base.eos_ids,
        reference=_reference(config, earlier),
        frozen=frozen,
    )


def make_model(config: RunConfig, shape: ModelConfig, text_vocab: int) -> Transformer:
    """Return the transformer that a run trains, or whose adapters it trains."""
    lora = None if STAGES[config.stage].trains_backbone else config.lora
    return Transformer(shape, text_vocab, lora, config.attention)


def make_network(
    config: RunConfig,
    model: Transformer,
    params: Params,
    earlier: ModelFolder | None,
    key: Key,
    placement: Placement | None = None,
) -> tuple[Network, dict[str, Params]]:
    """Return what a run does not train, and what it does; see `make_adapters`."""
    if STAGES[config.stage].trains_backbone:
        backbone: dict[str, Any] = {"params": None}
        adapters = {"backbone": _put(params, placement)}
    else:
        adapters, rows = make_adapters(config, model, params, earlier, key, placement)
        params = quantize_params(params, config.quantize)
        backbone = _put({"params": params, "rows": rows}, placement)
        adapters = _put(adapters, placement)
    trained = STAGES[config.stage].trained(config)
    trainable = {name: adapters.pop(name) for name in trained}
    return Network(model, backbone, adapters), trainable


def _put(tree: Any, placement: Placement | None) -> Any:
    """Lay out what has been read to host memory, and leave the rest where it is."""
    if placement is None:
        return tree

    def put(leaf: Any, sharding: Any) -> jax.Array:
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        if getattr(leaf, "is_fully_addressable", True):
            return from_host(leaf, sharding)
        return jax.device_put(leaf, sharding)

    return jax.tree.map(put, tree, placement(tree))


def make_adapters(
    config: RunConfig,
    model: Transformer,
    params: Params,
    earlier: ModelFolder | None,
    key: Key,
    placement: Placement | None = None,
) -> tuple[dict[str, Params], dict[str, Any]]:
    """Return adapters by name and the frozen rows, of an earlier run or new ones.

    Works under ``jax.eval_shape``.

    Args:
      config, model: stage, ``reinit`` and settings; what has the adapters.
      params: the backbone, whose tables new memory tokens, marks and (untied) rows of
        the head resemble; see ``clara.init_rows``.
      earlier: what ``init_from`` holds, or None.
      key: root of all draws; each name has its own.
      placement: where new adapters are made; None for the default device.

    Raises:
      ClaraError: an adapter that this stage needs is in neither, or does not fit.
    """
    stage, copies = STAGES[config.stage], STAGES[config.stage].copies
    have = (earlier.adapters if earlier is not None else None) or {}
    fresh = {*stage.fresh, *config.reinit}
    num_memory = config.memory.num_memory
    # A copy of what this stage trains would go stale: the original drops it as well.
    stale = {"reasoner"} if "compressor" in stage.trains else set()
    kept = {n: tree for n, tree in have.items() if n not in fresh | stale}
    if earlier is not None and earlier.clara is not None and kept:
        _check_settings(config, earlier.clara, "memory" in kept)
    if not stage.compresses(config) and "memory" not in kept:
        fresh.add("memory")
    adapters = dict(kept)
    missing: list[str] = []
    wanted = sorted(stage.needs(config) - set(kept))
    for name in sorted(wanted, key=lambda n: n in copies):
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        if name in copies and name not in fresh and copies[name] in adapters:
            adapters[name] = adapters[copies[name]]
        elif name not in fresh:
            # A copy of what is missing is not missing itself.
            missing += [name] * (copies.get(name) not in missing)
        elif name == "memory":
            adapters[name] = _rows(model, params["embed"]["embedding"], num_memory, own)
        else:
            adapters[name] = init_lora(model, own, placement)
    if missing:
        where, names = config.init_from, ",".join(missing)
        why = f"{where} has none" if where else "config field 'init_from' is empty"
        raise ClaraError(
            f"stage {config.stage} starts from a trained {' and '.join(missing)}, but "
            f"{why}; set init_from, or --config.reinit={names} to start anew"
        )
    lora = jax.eval_shape(lambda: init_lora(model, jax.random.key(0)))
    memory = jax.ShapeDtypeStruct((num_memory, model.config.width), "f4")
    for name, tree in adapters.items():
        wanted = memory if name == "memory" else lora
        if jax.tree.map(np.shape, tree) != jax.tree.map(np.shape, wanted):
            raise ClaraError(
                f"adapter {name} of {config.init_from} does not fit the backbone and "
                "the config's lora and memory settings; take the base it was trained on"
            )
    if "memory" in kept and earlier is not None and earlier.rows:
        return adapters, dict(earlier.rows)
    own = jax.random.fold_in(key, zlib.crc32(b"marks"))
    rows = {"marks": _rows(model, params["embed"]["embedding"], 3, own)}
    if not model.config.tied:
        own = jax.random.fold_in(key, zlib.crc32(b"head"))
        table, count = params["head"]["kernel"].T, config.memory.num_special
        rows["head"] = _rows(model, table, count, own)
    return adapters, rows


def _rows(model: Transformer, table: Any, count: int, key: Key) -> Any:
    used = model.text_vocab
    if isinstance(table, np.ndarray):
        return init_rows(jax.numpy.asarray(table[:used]), count, key)
    # Compiled, since the table may lie on devices of other processes.
    return jax.jit(lambda table, key: init_rows(table[:used], count, key))(table, key)


def _random_base(
    config: RunConfig, preset: str, key: Key, placement: Placement
) -> ModelFolder:
    unknown = f"no preset '{preset}'; use one of {', '.join(PRESETS)}"
    require(preset in PRESETS, "backbone", unknown)
    if not config.tokenizer:
        raise ClaraError(
            f"config field 'tokenizer' is empty, and the backbone random:{preset} "
            "brings none; name a tokenizer folder"
        )
    tokenizer = load_tokenizer(config.tokenizer)
    shape = PRESETS[preset]
    shape = dataclasses.replace(
        shape,
        param_dtype=config.param_dtype or shape.param_dtype,
        vocab_size=max(shape.vocab_size, len(tokenizer)),
    )
    key = jax.random.fold_in(key, zlib.crc32(b"backbone"))
    model = Transformer(shape, text_vocab=shape.vocab_size)
    params = init_backbone(model, key, placement)
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return ModelFolder(shape, params, tokenizer, eos_ids=eos)


def _reference(config: RunConfig, earlier: ModelFolder | None) -> str:
    """Return where the frozen weights are, seen from the run's folder."""
    name = config.backbone
    if name.startswith("random:"):
        return "backbone"
    if not name:
        assert earlier is not None
        inner = earlier.clara.backbone if earlier.clara is not None else "backbone"
        beside = Path(config.init_from) / inner
        if inner == "backbone":
            name = config.init_from
        else:
            name = str(beside) if beside.exists() else inner
    place = Path(name)
    if not place.exists():
        return name  # a hub name
    workdir = Path(config.workdir).resolve()
    if place.resolve().is_relative_to(workdir.parent):
        return os.path.relpath(place.resolve(), workdir)
    return str(place.resolve())


def _check_settings(config: RunConfig, clara: ClaraSettings, memory: bool) -> None:
    """Refuse settings other than those that kept adapters were trained with."""
    names = ["lora.rank", "lora.alpha", "lora.layers"]
    names += ["memory.separator"] if memory else []
    for name in names:
        read = operator.attrgetter(name)
        a, b = read(config), read(clara)
        if a != b:
            raise ClaraError(
                f"config field '{name}' is {a}, but {config.init_from} was "
                f"trained with {b}; set --config.{name}={b}"
            )
    ours, theirs = config.memory, clara.memory
    require(
        not memory or ours.num_memory == theirs.num_memory,
        "memory.compression_rate",
        f"documents of {ours.doc_max_length} tokens get {ours.num_memory} memory "
        f"tokens, but {config.init_from} has {theirs.num_memory}; set "
        f"--config.memory.doc_max_length={theirs.doc_max_length} "
        f"--config.memory.compression_rate={theirs.compression_rate}",
    )
