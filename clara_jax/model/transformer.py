"""The one backbone: a decoder-only transformer of the Llama family."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clara_jax.config import LORA_LAYERS, LoraConfig, ModelConfig
from clara_jax.model.attention import (
    Attention,
    Cache,
    LayerCache,
    Rotation,
    Visible,
    visible_keys,
)
from clara_jax.model.layers import PRODUCT, Linear, RMSNorm
from clara_jax.model.rope import rope_tables, takes_long_factors
from clara_jax.shapes import Array, Bool, Float, Hidden, Int, Logits, TokenIds
from clara_jax.sharding import place

_policies = jax.checkpoint_policies
_PRODUCTS = _policies.save_only_these_names(PRODUCT)
_POLICIES = {
    "full": None,
    "dots": _policies.save_from_both_policies(_policies.checkpoint_dots, _PRODUCTS),
    "dots_no_batch": _policies.save_from_both_policies(
        _policies.checkpoint_dots_with_no_batch_dims, _PRODUCTS
    ),
}


class Mlp(nn.Module):
    """Gated feed-forward: ``down(activation(gate(x)) * up(x))``."""

    hidden: int
    activation: str
    fused: bool
    use_bias: bool
    linear: dict[str, dict]

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        """Map each token on its own."""
        if self.fused:
            both = self._linear("gate_up", 2 * self.hidden)(x)
            gate, up = jnp.split(both, 2, axis=-1)
        else:
            gate = self._linear("gate", self.hidden)(x)
            up = self._linear("up", self.hidden)(x)
        # Of `nn.gelu`, the tanh form is the default.
        gate = nn.silu(gate) if self.activation == "silu" else nn.gelu(gate)
        return self._linear("down", x.shape[-1])(gate * up)

    def _linear(self, name: str, features: int) -> Linear:
        return Linear(features, use_bias=self.use_bias, name=name, **self.linear[name])


class Block(nn.Module):
    """One layer: attention and feed-forward, each on a normed residual stream.

    Attributes:
      attention, mlp, norm: arguments of `Attention`, `Mlp` and `RMSNorm`.
      output_norms: norm what attention and feed-forward return, too.
    """

    attention: dict[str, Any]
    mlp: dict[str, Any]
    norm: dict[str, Any]
    output_norms: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: LayerCache | None,
        rotations: tuple[Rotation, Rotation | None],
        masks: tuple[Visible | None, Visible | None],
        start: Int[Array, ""] | None,
        full: Bool[Array, ""] | None,
        other: Bool[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Return the layer's output and its cache.

        Where layers differ, those whose `full` is set take the second of `masks`, and
        those whose `other` is set the second of `rotations`.
        """
        x = place(x, "batch", None, None)
        attention = Attention(**self.attention, name="attention")
        mlp = Mlp(**self.mlp, name="mlp")
        input_norm = RMSNorm(**self.norm, name="input_norm")
        post_norm = RMSNorm(**self.norm, name="post_norm")
        rotation, visible = rotations[0], masks[0]
        if full is not None:
            visible = _either(full, *masks[::-1])
        if other is not None:
            rotation = _either(other, *rotations[::-1])
        mixed, cache = attention(input_norm(x), rotation, visible, cache, start)
        if self.output_norms:
            mixed = RMSNorm(**self.norm, name="attention_output_norm")(mixed)
        x = x + mixed
        mapped = mlp(post_norm(x))
        if self.output_norms:
            mapped = RMSNorm(**self.norm, name="mlp_output_norm")(mapped)
        return x + mapped, cache


def block_settings(
    config: ModelConfig, lora: LoraConfig | None, attention: str = "auto"
) -> dict[str, Any]:
    """Return the arguments of the `Block` that `config` describes."""
    types = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    linear: dict[str, dict] = dict.fromkeys(LORA_LAYERS, types)
    if lora is not None:
        scale = lora.alpha / lora.rank
        adapted = {"rank": lora.rank, "scale": scale, "dropout": lora.dropout}
        linear |= {n: types | adapted for n in LORA_LAYERS if lora.covers(n)}
    norm = {"eps": config.norm_eps, "centered": config.centered_norms, **types}
    same = "num_heads num_kv_heads head_dim qk_norm qkv_bias output_bias"
    return {
        "attention": {
            **{name: getattr(config, name) for name in same.split()},
            "window": config.sliding_window,
            "scale": config.score_dim**-0.5 if config.score_dim else None,
            "fused": config.fused_qkv,
            "linear": linear,
            "norm": norm,
            "implementation": attention,
        },
        "mlp": {
            "hidden": config.mlp_dim,
            "activation": config.activation,
            "fused": config.fused_gate_up,
            "use_bias": config.mlp_bias,
            "linear": linear,
        },
        "norm": norm,
        "output_norms": config.output_norms,
    }


class Transformer(nn.Module):
    """Decoder-only language model, with room for adapters and special rows.

    Three collections: ``params`` (frozen), ``lora`` (one role's adapter, optional) and
    ``rows`` (optional): ``embedding [E, D]`` for the ids from `text_vocab` on, and
    ``head [E, D]`` for their logits when the head is not tied. Rows of the embedding
    table beyond `text_vocab` (padded vocabularies) are kept and never used; tokens
    beyond the table (Gemma 3's for images) share its last row.

    Attributes:
      config: the backbone's shape.
      text_vocab: ids of the tokenizer before special tokens are added.
      lora: which layers carry adapters, of which rank; None for the plain base.
      attention: what computes it, out of `attention.ATTENTIONS`; no property of the
        weights.

    Example::

      model = Transformer(presets.TINY, text_vocab=presets.TINY.vocab_size)
      variables = model.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
      logits = model.apply({"params": variables["params"]}, ids)
    """

    config: ModelConfig
    text_vocab: int
    lora: LoraConfig | None = None
    attention: str = "auto"

    def setup(self) -> None:
        """Declare tables, layers and norms."""
        config = self.config
        param_dtype = jnp.dtype(config.param_dtype)
        table = (config.vocab_size, config.width)
        self.embedding = _Table(table, param_dtype, "embedding", name="embed")
        settings = block_settings(config, self.lora, self.attention)
        block = Block
        if config.remat != "none":
            policy = _POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=False)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *[nn.broadcast] * 3, 0, 0),  # pyright: ignore[reportArgumentType]
            out_axes=0,
            length=config.num_layers,
        )(**settings)
        self.final_norm = RMSNorm(**settings["norm"])
        if not config.tied:
            self.head = _Table((config.width, config.vocab_size), param_dtype, "kernel")

    def __call__(
        self,
        ids: TokenIds,
        positions: Int[Array, "B T"] | None = None,
        mask: Bool[Array, "B S"] | None = None,
    ) -> Logits:
        """Return logits of every position: `embed`, `hidden`, `logits` in a row."""
        hidden, _ = self.hidden(self.embed(ids), positions, mask)
        return self.logits(hidden)

    def embed(self, ids: TokenIds) -> Hidden:
        """Return embeddings; ids from `text_vocab` on come from the row table."""
        dtype = jnp.dtype(self.config.dtype)
        found = jnp.take(self.embedding(), ids, axis=0, mode="clip").astype(dtype)
        rows = self.get_variable("rows", "embedding")
        if rows is not None:
            special = jnp.take(rows, ids - self.text_vocab, axis=0, mode="clip")
            is_special = (ids >= self.text_vocab)[..., None]
            found = jnp.where(is_special, special.astype(dtype), found)
        if self.config.scaled_embeddings:
            # Of tokens only: vectors put in their place are given as they are.
            found *= jnp.asarray(self.config.width**0.5, dtype)
        return found

    def hidden(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"] | None = None,
        mask: Bool[Array, "B S"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Return the last hidden states, after the final norm, and the cache.

        Args:
          embeddings: of T tokens.
          positions: positions in the rows, padding not counted; by default the slots.
          mask: real keys: of these T tokens, or of all S slots of `cache`. None says
            that causality alone is enough: no padding, or padding on the right, whose
            states nobody reads.
          cache: keys and values read before; these tokens are written behind them.
        """
        config = self.config
        batch, length = embeddings.shape[:2]
        start = jnp.zeros((), jnp.int32) if cache is None else cache.length
        slots = start + jnp.arange(length, dtype=jnp.int32)
        if positions is None:
            positions = jnp.broadcast_to(slots[None, :], (batch, length))
        long = None
        if config.rope.kind == "longrope":
            long = takes_long_factors(config.rope, positions)
            if cache is not None:
                long = jnp.where(cache.length == 0, long, cache.long)
        rotation = rope_tables(config.rope, config.head_dim, positions, long)
        other_rotation = other = None
        if config.unrotated_layers:
            other_rotation = jnp.ones_like(rotation[0]), jnp.zeros_like(rotation[1])
            other = _flags(config.unrotated_layers, config.num_layers)
        elif config.window_rope is not None:
            other_rotation = rope_tables(config.window_rope, config.head_dim, positions)
            other = ~_flags(config.full_layers, config.num_layers)
        key_positions, layer_cache = positions, None
        if cache is not None:
            key_positions = jax.lax.dynamic_update_slice(
                cache.positions, positions, (0, start)
            )
            layer_cache = (cache.key, cache.value)
            if mask is None:
                mask = jnp.ones((batch, cache.key.shape[2]), bool)
        window, full_layers = config.sliding_window, config.full_layers
        keys = length if cache is None else cache.key.shape[2]
        mixed = window is not None and window < keys and bool(full_layers)
        if mixed and mask is None:
            mask = jnp.ones((batch, length), bool)
        visible = everything = full = None
        if mask is not None:
            visible = visible_keys(slots, positions, key_positions, mask, window)
            if mixed:
                everything = visible_keys(slots, positions, key_positions, mask, None)
                full = _flags(full_layers, config.num_layers)
        rotations, masks = (rotation, other_rotation), (visible, everything)
        x, layer_cache = self.layers(
            embeddings, layer_cache, rotations, masks, start, full, other
        )
        if cache is not None:
            assert layer_cache is not None
            cache = Cache(
                key=layer_cache[0],
                value=layer_cache[1],
                positions=key_positions,
                length=start + length,
                long=cache.long if long is None else long,
            )
        return self.final_norm(x), cache

    def logits(self, hidden: Hidden) -> Logits:
        """Return float32 scores of the text vocabulary, then of the special rows."""
        table = self.embedding().T if self.config.tied else self.head()
        hidden = place(hidden, "batch", *[None] * (hidden.ndim - 1))
        text = _product(hidden, table)[..., : self.text_vocab]
        beyond = self.text_vocab - text.shape[-1]
        if beyond:
            text = jnp.concatenate((text, *[text[..., -1:]] * beyond), axis=-1)
        rows = self.get_variable("rows", "embedding" if self.config.tied else "head")
        if rows is None:
            return text
        return jnp.concatenate((text, _product(hidden, rows.T)), axis=-1)


def _either(first: Bool[Array, ""], one: Any, other: Any) -> Any:
    """Return the arrays of `one` where `first` is set, else of `other`."""
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), one, other)


def _flags(layers: tuple[int, ...], count: int) -> Bool[Array, " L"]:
    return jnp.isin(jnp.arange(count), jnp.array(layers, jnp.int32))


class _Table(nn.Module):
    shape: tuple[int, int]
    dtype: jnp.dtype
    entry: str

    @nn.compact
    def __call__(self) -> Float[Array, "rows columns"]:
        return self.param(
            self.entry, nn.initializers.normal(0.02), self.shape, self.dtype
        )


def _product(hidden: Hidden, table: Float[Array, "D V"]) -> Logits:
    return jnp.matmul(
        hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
