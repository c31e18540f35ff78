"""A byte-level tokenizer without merges: small, and any text round-trips."""

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if m['role'] == 'user' %}Q {{ m['content'] }} A{% else %}"
    " {{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def toy_tokenizer(
    template: str | None = TEMPLATE,
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    pad: str | None = "<pad>",
    extra: tuple[str, ...] = (),
) -> transformers.PreTrainedTokenizerFast:
    """Build the tokenizer; pass None for a token it should not have."""
    specials = [token for token in (pad, bos, eos, *extra) if token]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*specials, *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        **({"extra_special_tokens": list(extra)} if extra else {}),
    )
    tokenizer.chat_template = template
    return tokenizer
