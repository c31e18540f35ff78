"""The facade: anything that holds a CLaRa model, ready to compress and answer."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from clara_jax.clara import Network, vector_fingerprint
from clara_jax.config import DTYPES, QUANTIZATIONS
from clara_jax.convert import load_model
from clara_jax.errors import ClaraError
from clara_jax.files import is_remote
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.model import Transformer, logical_axes, quantize_params
from clara_jax.search import Store, StoreSettings
from clara_jax.sharding import tree_shardings
from clara_jax.text import ClaraTokenizer

_NEAR = 2  # folders up from a store to one that its model is looked for below


def load(
    path: str | os.PathLike,
    config: AnswerConfig | None = None,
    *,
    base: str = "",
    rate: int = 0,
    dtype: str = "",
    quantize: str = "none",
    mesh: Mesh | None = None,
) -> Clara:
    """Load a model that can answer, and put its weights on the device.

    Args:
      path: a run's folder, a converted model, a checkpoint folder of the original or
        its hub name, as ``apple/CLaRa-7B-E2E``, or the name of a model that comes with
        the package, as ``smollm2-135m-16x``.
      config: how answers are made; without end ids of its own it takes the model's.
      base: the base model to take in place of the one that the folder names.
      rate: the compression rate, where `path` has models of several.
      dtype: compute type; empty takes that of the stored weights on accelerators, and
        float32 on a CPU. Processors with bfloat16 instructions compress about 1.6 times
        as many documents in bfloat16.
      quantize: how the frozen layers' matrices are kept: ``none`` as they are stored,
        ``int8``, or ``nf4`` (4 bits).
      mesh: devices to lay the weights out over, as the table in `clara_jax.sharding`
        says; then use the model under ``jax.set_mesh(mesh)``. None takes one device.

    Raises:
      ClaraError: `path` is damaged, or a plain base model.

    Example::

      clara = clara_jax.load("runs/quickstart/end_to_end")
      clara.select_and_answer(["Who?"], [documents], top_k=1).answers
    """
    if dtype not in ("", *DTYPES):
        raise ClaraError(f"dtype is '{dtype}', but must be one of {', '.join(DTYPES)}")
    if quantize not in QUANTIZATIONS:
        raise ClaraError(
            f"quantize is '{quantize}', but must be one of {', '.join(QUANTIZATIONS)}"
        )
    on_cpu = jax.default_backend() == "cpu"
    if dtype == "float16" and on_cpu:
        raise ClaraError(
            "dtype is 'float16', in which a CPU does not compute; take bfloat16"
        )
    shardings = None
    if mesh is not None:
        shardings = functools.partial(tree_shardings, mesh, axes=logical_axes)
    # Weights that are to be quantized may not fit on the devices before.
    placement = shardings if quantize == "none" else None
    folder = load_model(path, base=base, rate=rate, placement=placement)
    settings = folder.clara
    if settings is None or folder.adapters is None:
        raise ClaraError(
            f"{path}: is a base model without CLaRa adapters; train stage scp on it "
            "and give that run's folder"
        )
    if not dtype:
        dtype = "float32" if on_cpu else folder.config.param_dtype
    config = config or AnswerConfig()
    longest = folder.config.rope.max_position
    if longest and config.max_new_tokens >= longest:
        raise ClaraError(
            f"max_new_tokens {config.max_new_tokens} is not below {longest}, the "
            "longest text that this model reads"
        )
    if not config.eos_ids:
        config = dataclasses.replace(config, eos_ids=tuple(folder.eos_ids))
    params = quantize_params(folder.params, quantize)
    folder = dataclasses.replace(folder, params=params)
    arrays = folder.backbone, folder.adapters
    arrays = jax.device_put(arrays, shardings and tuple(map(shardings, arrays)))
    shape = dataclasses.replace(folder.config, dtype=dtype)
    model = Transformer(shape, settings.text_vocab, lora=settings.lora)
    return Clara(
        network=Network(model, *arrays),
        tokenizer=ClaraTokenizer(
            folder.tokenizer,
            settings.memory.num_memory,
            control_tokens=config.control_tokens,
        ),
        memory=settings.memory,
        selection=settings.selection,
        config=config,
    )


def load_for(store: Store, config: AnswerConfig, model: str = "", **how: Any) -> Clara:
    """Load the model that made a store; refuse another.

    Args:
      store: names its model.
      config: how answers are made.
      model: where it lies now; empty: where the store says.
      how: see `load`; without a ``base`` it is the one that the store names, and
        without a `model` its rate is the store's.

    Raises:
      ClaraError: it is not there, or did not make the store.
    """
    found, base = find_model(store.place, store.settings)
    how["base"] = how.get("base") or ("" if model else base)
    if not model:
        how["rate"] = how.get("rate") or store.settings.memory.compression_rate
    clara = load(model or found, config, **how)
    store.require(vector_fingerprint(clara.network))
    return clara


def store_settings(clara: Clara, **more: str) -> StoreSettings:
    """Return the settings of a store of vectors that a model makes.

    Args:
      clara: the model.
      more: further fields of them; by default no place of the model is named.
    """
    config = clara.network.model.config
    given = {"model": "", "base": "", "compute": config.dtype, **more}
    fingerprint = vector_fingerprint(clara.network)
    return StoreSettings(fingerprint, memory=clara.memory, width=config.width, **given)


def model_place(model: str | os.PathLike, store: str | os.PathLike) -> str:
    """Return how a store names the model, a folder, file or hub name, that made it.

    Where both lie near each other, so that they may be moved together, this is a path
    relative to the store, such as ``../end_to_end``; else an absolute one; a hub name
    stays as it is.
    """
    if not str(model) or not Path(model).exists():
        return str(model)
    place, origin = os.path.realpath(model), os.path.realpath(store)
    if is_remote(store):
        return place
    relative = Path(os.path.relpath(place, origin))
    shared = Path(os.path.commonpath((place, origin)))
    near = relative.parts.count(os.pardir) <= _NEAR and shared != shared.parent
    return relative.as_posix() if near else place


def find_model(store: str, settings: StoreSettings) -> tuple[str, str]:
    """Return the model that made a store, and its base if that is kept elsewhere.

    They are what `load` takes as ``path`` and ``base``; see `model_place`.
    """
    return _beside(store, settings.model), _beside(store, settings.base)


def _beside(store: str, name: str) -> str:
    """Return a path that a store names relative to itself; others as they are."""
    beside = Path(store, name)
    return str(beside) if name and beside.exists() else name
