"""Public dummies: a two-layer model, a toy tokenizer, random batches.

For tests of your own losses, hooks and searchers, without files and in milliseconds.

Example:
  >>> from clara_jax.stages import make_loss
  >>> from clara_jax.config import SelectionConfig
  >>> loss = make_loss("end_to_end", selection=SelectionConfig(top_k=2))
  >>> batch = random_batch("end_to_end", documents=2)
  >>> sums, weights, metrics = loss(toy_network(), batch, None)
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

from clara_jax.clara import IGNORE, ROLES, Batch, Network, Tokens
from clara_jax.clara.batches import pad_rows
from clara_jax.config import LoraConfig, ModelConfig, RunConfig, SelectionConfig
from clara_jax.model import Transformer, abstract_variables
from clara_jax.stages import STAGES
from clara_jax.text import PARAPHRASES, answer_prompt, paraphrase_prompt, scp_prompt

PAD, BOS, EOS = 0, 1, 2
"""Ids of these tokens in `toy_tokenizer` and `random_batch`."""

NUM_MEMORY = 2
TEXT_VOCAB = 61

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    " [{{ message['role'] }}] {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} [assistant] {% endif %}"
)
_WORD = re.compile(r"\w+|[^\w\s]")


def toy_network(
    seed: int = 0,
    num_memory: int = NUM_MEMORY,
    text_vocab: int = TEXT_VOCAB,
    lora: LoraConfig | None = None,
    **changes: Any,
) -> Network:
    """Make a two-layer model whose adapters all differ and all matter.

    Args:
      seed: of every number in it.
      num_memory: M.
      text_vocab: n, tokens before the special ones.
      lora: adapter settings; by default rank 4 on all layers.
      **changes: fields of `ModelConfig`.
    """
    sizes = {"vocab_size": text_vocab, "width": 16, "num_layers": 2, "mlp_dim": 24}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    fields: dict[str, Any] = {**sizes, **heads, **changes}
    config = ModelConfig(**fields)
    settings = lora or LoraConfig(rank=4, alpha=8.0, dropout=0.0)
    model = Transformer(config, text_vocab, settings)
    rng = np.random.default_rng(seed)
    shapes = abstract_variables(model)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = path[-1].key
        numbers = rng.normal(size=leaf.shape)
        if name == "scale":
            numbers = 1 + 0.1 * numbers
        elif name == "bias":
            numbers = 0.1 * numbers
        elif name != "embedding":
            numbers = numbers / np.sqrt(leaf.shape[-2])
        return jnp.asarray(numbers, leaf.dtype)

    def rows(count: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(count, config.width)), jnp.float32)

    backbone = {
        "params": jax.tree.map_with_path(draw, shapes["params"]),
        "rows": {"marks": rows(3)},
    }
    if not config.tied:
        backbone["rows"]["head"] = rows(num_memory + 3)
    adapters = {"memory": rows(num_memory)}
    adapters |= {role: jax.tree.map_with_path(draw, shapes["lora"]) for role in ROLES}
    return Network(model, backbone, adapters)


def toy_tokenizer(
    texts: Iterable[str] = (), chat_template: str | None = CHAT_TEMPLATE
) -> transformers.PreTrainedTokenizerFast:
    """Make a word-level tokenizer that knows the words of `texts` and of the prompts.

    Args:
      texts: whatever it shall read without unknown words.
      chat_template: jinja, or None for a base model's tokenizer.

    Returns:
      A fast tokenizer: pad 0, bos 1, eos 2, unknown 3, then words by first appearance.
    """
    prompts = [scp_prompt(""), answer_prompt("", "")]
    prompts += [paraphrase_prompt("", i) for i in range(len(PARAPHRASES))]
    spoken = ["[ system ] [ user ] [ assistant ] Answer", *map(" ".join, prompts)]
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3}
    for text in [*spoken, *texts]:
        for word in _WORD.findall(text):
            vocabulary.setdefault(word, len(vocabulary))
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words = pre_tokenizers.Split(tokenizers.Regex(_WORD.pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), words]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def random_batch(
    stage: str,
    *,
    rows: int = 4,
    documents: int = 3,
    candidates: int = 6,
    lengths: tuple[int, int] = (7, 4),
    network: Network | None = None,
    seed: int = 0,
) -> Batch:
    """Draw a batch as the data pipeline would make it for `stage`.

    It has all fields that the stage's loss reads: right-padded rows of several lengths.
    One candidate of each row is positive.

    Args:
      stage: a key of `STAGES`.
      rows: B.
      documents: J, slots in the prompt (scp has one).
      candidates: C.
      lengths: of the longest document or question, and of the longest answer, in words.
      network: that reads the batch; by default one of `toy_network`.
      seed: of every number in it.
    """
    if stage not in STAGES:
        raise ValueError(f"no stage '{stage}'; there are {', '.join(STAGES)}")
    rng = np.random.default_rng(seed)
    doc_length, answer_length = lengths
    n, m = TEXT_VOCAB, NUM_MEMORY
    if network is not None:
        n, m = network.model.text_vocab, network.num_memory
    slots = [*range(n, n + m), n + m + 2]

    def encoder(*shape: int) -> Tokens:
        count = int(np.prod(shape))
        lists = [
            [n + m + 1, BOS, *_words(rng, length, n), EOS, *range(n, n + m)]
            for length in rng.integers(1, doc_length + 1, count).tolist()
        ]
        flat = pad_rows(lists, PAD, count, doc_length + 3 + m)
        return jax.tree.map(lambda x: x.reshape(*shape, -1), flat)

    def prompts(slot_groups: int) -> tuple[Tokens, Any]:
        heads = [
            [BOS, *_words(rng, length, n), *slots * slot_groups]
            for length in rng.integers(1, 5, rows).tolist()
        ]
        answers = [
            [*_words(rng, length, n), EOS]
            for length in rng.integers(1, answer_length + 1, rows).tolist()
        ]
        width = 6 + len(slots) * slot_groups + answer_length
        labels = [[IGNORE] * len(a) + b for a, b in zip(heads, answers, strict=True)]
        ids = [a + b for a, b in zip(heads, answers, strict=True)]
        tokens = pad_rows(ids, PAD, rows, width)
        return tokens, pad_rows(labels, IGNORE, rows, width).ids

    selection = SelectionConfig(top_k=documents)
    reads = STAGES[stage].reads(RunConfig(stage, "-", "-", selection=selection))
    counts = {read.field: read.per_row for read in reads}
    fields: dict[str, Any] = {}
    if "question" in counts:
        gold = rng.integers(0, candidates, rows)
        fields |= {
            "question": encoder(rows),
            "candidates": encoder(rows, candidates),
            "candidate_mask": np.ones((rows, candidates), bool),
            "positives": np.arange(candidates)[None, :] == gold[:, None],
        }
    slot_groups = counts.get("documents") or (documents if fields else 0)
    if "prompt" in counts:
        fields["prompt"], fields["labels"] = prompts(slot_groups)
    if "documents" in counts:
        fields["documents"] = encoder(rows, slot_groups)
    return jax.tree.map(jnp.asarray, Batch(**fields))


def _words(rng: np.random.Generator, length: int, text_vocab: int) -> list[int]:
    return rng.integers(EOS + 1, text_vocab, length).tolist()
