"""Document vectors of a whole data set, made once before training.

The compressor is frozen in end_to_end and rerank, so the vectors never change. They lie
in one memory-mapped file, which an interrupted command goes on writing where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from clara_jax.clara import Network
from clara_jax.config import MemoryConfig, to_dict
from clara_jax.data import UniqueDocuments
from clara_jax.distributed import first, is_first, to_host
from clara_jax.files import read_json, reserve, write_error, write_json
from clara_jax.generate import encode_rows
from clara_jax.text import ClaraTokenizer

CHUNK = 512
"""Documents between two notes of how far the file is written; on CPUs 64 at most."""


_ENOUGH = {"enough": True}
"""Noted when there was no time for more: a command that goes on has the same then."""


def cached_vectors(
    folder: Path,
    network: Network,
    tokenizer: ClaraTokenizer,
    memory: MemoryConfig,
    documents: Sequence[str] | UniqueDocuments,
    *,
    batch_size: int = 32,
    stop: Callable[[], bool] = lambda: False,
    late: Callable[[int], bool] | None = None,
) -> np.ndarray | None:
    """Compress every document, or find that an earlier command did.

    Args:
      folder: holds ``vectors.bin`` and ``vectors.json``.
      network: whose compressor reads.
      tokenizer, memory: how documents become rows.
      documents: texts; distinct ones, as `UniqueDocuments` gives them.
      batch_size: documents compressed together.
      stop: asked after every chunk whether to end early.
      late: likewise, whether to make do with so many documents as are done by then.

    Returns:
      A memory map ``[len(documents), M, D]`` in the compute type, of the first
      documents only after `late`; None after `stop`.

    Raises:
      ClaraError: the file cannot be written.
    """
    shape = (len(documents), memory.num_memory, network.model.config.width)
    dtype = np.dtype(network.model.config.dtype)  # bfloat16 too: JAX registers it
    note = {
        "shape": list(shape),
        "dtype": dtype.name,
        "fingerprint": fingerprint(network, memory, documents),
    }
    data, notes = folder / "vectors.bin", folder / "vectors.json"

    def prepare() -> list[Any]:
        done, enough = 0, False
        if data.exists() and notes.exists():
            before = read_json(notes)
            if {k: before.get(k) for k in note} == note:
                done, enough = before["done"], before.get("enough", False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not done:
                notes.unlink(missing_ok=True)
                reserve(data, int(np.prod(shape)) * dtype.itemsize)
        except OSError as error:
            raise write_error(data, error) from error
        return [done, enough and late is not None]

    done, enough = first(prepare)
    if done == len(documents) or enough:
        return np.memmap(data, dtype, "r", shape=(done, *shape[1:]))
    vectors = np.memmap(data, dtype, "r+", shape=shape)
    chunk = min(CHUNK, 64) if jax.default_backend() == "cpu" else CHUNK
    with tqdm(
        total=len(documents),
        initial=done,
        desc="compress documents",
        unit="doc",
        disable=not is_first(),
    ) as bar:
        for begin in range(done, len(documents), chunk):
            texts = documents[begin : begin + chunk]
            found = encode_rows(
                network,
                tokenizer.encode_documents(list(texts), memory.doc_max_length),
                role="compressor",
                pad_id=tokenizer.pad_id,
                batch_size=batch_size,
                largest=memory.doc_max_length + 3 + memory.num_memory,
            )
            end = begin + len(texts)

            def keep(begin: int = begin, end: int = end, found: Any = found) -> None:
                vectors[begin:end] = np.asarray(found)
                vectors.flush()
                write_json(notes, {**note, "done": end})

            first(keep)
            bar.update(len(texts))
            if end < len(documents):
                if stop():
                    return None
                # By the clock of the first process, for all.
                if late is not None and first(partial(late, end)):
                    first(partial(write_json, notes, {**note, "done": end, **_ENOUGH}))
                    return np.memmap(data, dtype, "r", shape=(end, *shape[1:]))
    return np.memmap(data, dtype, "r", shape=shape)


def fingerprint(
    network: Network,
    memory: MemoryConfig,
    documents: Sequence[str] | UniqueDocuments,
) -> str:
    """Digest of all that document vectors depend on.

    Compressor, memory and marks go in whole; of every backbone array a spread of at
    most 4,096 numbers, which tells models apart without reading gigabytes.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings = {"model": to_dict(network.model.config), "memory": to_dict(memory)}
    settings["model"]["remat"] = ""
    digest.update(json.dumps(settings, sort_keys=True).encode())
    adapters, backbone = network.adapters, network.backbone
    whole = (adapters["compressor"], adapters["memory"], backbone["rows"]["marks"])
    for leaf in jax.tree.leaves(to_host(whole)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    for leaf in jax.tree.leaves(backbone["params"]):
        digest.update(np.ascontiguousarray(to_host(_spread(leaf))).tobytes())
    for text in documents:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


@jax.jit
def _spread(leaf: Any) -> Any:
    flat = leaf.reshape(-1)
    return flat[:: max(1, flat.size // 4096)]
