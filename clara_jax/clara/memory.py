"""Special rows and memory slots: how documents enter and leave the backbone."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clara_jax.clara.batches import Tokens
from clara_jax.shapes import Array, Bool, Float, Int, Key, Params

ROLES = ("compressor", "reasoner", "generator")


def role_variables(backbone: Params, adapters: Params, role: str | None) -> Params:
    """The collections with which the transformer plays one role.

    Args:
      backbone: ``params`` and the frozen ``rows`` (``marks [3, D]`` for AE, ENC, SEP;
        ``head [M + 3, D]`` unless tied).
      adapters: a ``lora`` tree per role, ``memory [M, D]``, and for language-model
        pretraining ``backbone``, which then stands for ``params``.
      role: out of `ROLES`, or None for no adapter at all.

    Returns:
      A dict for ``model.apply``.
    """
    variables = {"params": adapters.get("backbone", backbone["params"])}
    if "memory" in adapters:
        frozen = backbone["rows"]
        memory = adapters["memory"]
        rows = {
            "embedding": jnp.concatenate(
                (memory, frozen["marks"].astype(memory.dtype)), axis=0
            )
        }
        if "head" in frozen:
            rows["head"] = frozen["head"]
        variables["rows"] = rows
    if role is not None:
        variables["lora"] = adapters[role]
    return variables


def init_rows(
    table: Float[Array, "V D"], count: int, key: Key
) -> Float[Array, "{count} D"]:
    """New rows for a table: draws with its rows' mean and standard deviation.

    The original draws from a full-covariance normal; a diagonal one needs no
    decomposition of a ``[D, D]`` matrix and starts memory tokens as well.

    Args:
      table: embedding or output rows of the text vocabulary.
      count: how many rows.
      key: random key.

    Returns:
      ``[count, D]`` float32.
    """
    wide = table.astype(jnp.float32)
    mean, std = jnp.mean(wide, axis=0), jnp.std(wide, axis=0)
    noise = jax.random.normal(key, (count, table.shape[1]))
    return mean[None, :] + std[None, :] * noise


def positions_in_rows(mask: Bool[Array, "*rows T"]) -> Int[Array, "*rows T"]:
    """Position of every token in its own row, padding not counted.

    Padding takes its left neighbour's position, so a row's largest position is that of
    its last token.
    """
    counted = jnp.cumsum(mask.astype(jnp.int32), axis=-1)
    return jnp.maximum(counted - 1, 0)


def memory_slots(mask: Bool[Array, "B T"], num_memory: int) -> Int[Array, "B M"]:
    """Where each encoder row's memory tokens stand: its last M real positions.

    Rows without any token (absent documents) point somewhere harmless.
    """
    length = mask.shape[-1]
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=-1)
    slots = last[:, None] - num_memory + 1 + jnp.arange(num_memory)[None, :]
    return jnp.clip(slots, 0, length - 1)


def fill_slots(
    embeddings: Float[Array, "B T D"],
    prompt: Tokens,
    vectors: Float[Array, "B J M D"],
    text_vocab: int,
) -> Float[Array, "B T D"]:
    """Put document vectors in place of the prompt's memory tokens (paper section 3.2).

    The i-th memory token of a row, counted from the left over all its documents, takes
    vector ``(i // M, i % M)``. Memory tokens beyond ``J * M`` keep their own embedding.

    Args:
      embeddings: input embeddings of the prompt.
      prompt: its ids, ``[B, T]``.
      vectors: J documents of M vectors for each row.
      text_vocab: the first memory token's id.

    Returns:
      Embeddings with the slots filled.
    """
    batch, documents, num_memory, width = vectors.shape
    is_memory = (prompt.ids >= text_vocab) & (prompt.ids < text_vocab + num_memory)
    is_memory &= prompt.mask
    order = jnp.cumsum(is_memory.astype(jnp.int32), axis=-1) - 1
    filled = is_memory & (order < documents * num_memory)
    flat = vectors.reshape(batch, documents * num_memory, width)
    chosen = jnp.take_along_axis(
        flat, jnp.clip(order, 0, flat.shape[1] - 1)[..., None], axis=1
    )
    return jnp.where(filled[..., None], chosen.astype(embeddings.dtype), embeddings)
