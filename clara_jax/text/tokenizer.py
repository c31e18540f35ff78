"""A Hugging Face tokenizer with CLaRa's special tokens and prompt rules."""

import copy
import datetime
import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers
import transformers

from clara_jax.config import ROW_MARKS
from clara_jax.errors import ClaraError
from clara_jax.text.control_tokens import ControlTokens
from clara_jax.text.prompts import ESCAPE, Prompt, mark, marker_names, plain, readable

NAME_KEY = "clara_name"
"""Where a tokenizer keeps the name of its base model (``init_kwargs``, config)."""

_DAY = datetime.date(2024, 7, 26)
_TODAY = "".join(
    f" | replace('%{c}', '{_DAY.strftime(f'%{c}')}')" for c in "aAbBdmyYjHIMSp"
)
_PINNED = f"{{% macro strftime_now(form) %}}{{{{ form{_TODAY} }}}}{{% endmacro %}}\n"
"""Put before a template that asks for today's date, so that it gets `_DAY`. It is the
one that Llama's templates name where they cannot ask."""

_PROBE, _ANSWER = Prompt("Sonnets", "Madrigals"), "Odes"


class ClaraTokenizer:
    """Text to token ids and back, with M memory tokens, AE, ENC and SEP added.

    The tokenizer given is copied and never changed. Special tokens take the ids after
    its own: ``n .. n+M-1`` memory, ``n+M`` AE, ``n+M+1`` ENC, ``n+M+2`` SEP. Prompts
    are strings in which these tokens have spellings that users cannot write (see
    `clara_jax.text.prompts`): `slots` makes them, `chat` and `encode_document` remove
    them from everything else.

    Like the original: without a pad token, bos serves; a tokenizer without bos (eos)
    whose `name` contains "qwen" takes the first (second) of its additional special
    tokens, which are the memory tokens when it has none of its own. Without a chat
    template (a base model) it gets the plainest one: bos, system text, newline, user
    text, newline, answer, eos.

    Args:
      tokenizer: a ``transformers`` fast tokenizer.
      num_memory: M, memory tokens per document.
      name: hub name or path of the base model, for the rule above; when empty, the
        name that `save` stored, else the tokenizer's own.
      control_tokens: whether a text that spells a special token of the base tokenizer,
        such as ``</s>``, means it, as in the original; else its characters are text
        like others.

    Attributes:
      text_vocab: n, tokens before the special ones.
      memory_ids, ae_id, enc_id, sep_id: ids of the special tokens.
      bos_id: None where the tokenizer has no such token.
      eos_id, pad_id: always there.

    Raises:
      ClaraError: a slow tokenizer, no eos token, or special tokens that do not get the
        ids after the text vocabulary.
    """

    def __init__(
        self,
        tokenizer: Any,
        num_memory: int,
        name: str = "",
        *,
        control_tokens: bool = True,
    ):
        if num_memory < 1:
            raise ClaraError(f"num_memory must be at least 1, not {num_memory}")
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ClaraError(
                f"tokenizer {type(tokenizer).__name__} is not a fast tokenizer; give "
                "one that has a tokenizer.json"
            )
        stored = tokenizer.init_kwargs.get(NAME_KEY, "")
        self.name = name or stored or str(tokenizer.name_or_path or "")
        self.num_memory = num_memory
        self.base = copy.deepcopy(tokenizer)
        self.base.init_kwargs[NAME_KEY] = self.name
        first = self.text_vocab = len(self.base)
        names = marker_names(num_memory)
        vocabulary = self.base.get_vocab()
        taken = [name for name in names if f"<{name}>" in vocabulary]
        if taken:
            raise ClaraError(
                f"tokenizer {self.name} already has <{min(taken)}>; give the base "
                "model's tokenizer, without CLaRa's special tokens"
            )
        self._marked = copy.deepcopy(tokenizer)
        backend = self._backend = self._marked.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        marks = [mark(name) for name in names]
        backend.add_special_tokens(
            [tokenizers.AddedToken(m, special=True, normalized=False) for m in marks]
        )
        ids = [backend.token_to_id(m) for m in marks]
        if ids != list(range(first, first + len(names))):
            raise ClaraError(
                f"tokenizer {self.name} has {first} tokens, but its next free id is "
                f"{ids[0]}; its ids must be without gaps"
            )
        self._controls = None if control_tokens else ControlTokens(backend, first)
        self.memory_ids = tuple(ids[:num_memory])
        self.ae_id, self.enc_id, self.sep_id = ids[num_memory:]
        base = self.base
        self.bos, self.eos = base.bos_token or "", base.eos_token or ""
        if "qwen" in self.name.lower():
            own = getattr(base, "extra_special_tokens", None)
            if not (own and isinstance(own, (list, tuple))):
                own = getattr(base, "additional_special_tokens", None) or ()
            entries = [*map(str, own), *marks]
            self.bos = self.bos or entries[0]
            self.eos = self.eos or entries[1]
        if not self.eos:
            raise ClaraError(
                f"tokenizer {self.name} has no eos token; set eos_token in its "
                "tokenizer_config.json"
            )
        self.bos_id = self._backend.token_to_id(self.bos) if self.bos else None
        self.eos_id: int = self._backend.token_to_id(self.eos)
        given = (base.pad_token_id, self.bos_id, self.eos_id)
        self.pad_id: int = next(i for i in given if i is not None)

    @classmethod
    def load(
        cls, source: str | Path, num_memory: int, name: str = ""
    ) -> "ClaraTokenizer":
        """Read a tokenizer folder or hub name; `name` as for the class."""
        return cls(load_tokenizer(source), num_memory, name)

    def save(self, folder: str | Path) -> None:
        """Write the base tokenizer and its `name`, without the special tokens."""
        self.base.save_pretrained(str(folder))

    def slots(self, num_documents: int, separator: bool = True) -> str:
        """Spell J documents in a prompt: M memory tokens each, and SEP if asked for."""
        names = [f"MEM{i}" for i in range(self.num_memory)]
        one = "".join(mark(name) for name in names + ["SEP"] * separator)
        return one * num_documents

    def encode(self, text: str) -> list[int]:
        """Turn a string into ids; bos and eos only where the string spells them."""
        return self._ids(text, self._backend.encode(text, add_special_tokens=False))

    def encode_text(self, text: str) -> list[int]:
        """Turn users' words into ids, without bos and eos."""
        return self.encode(self._words(text))

    def decode(self, ids: Iterable[SupportsIndex], skip_special: bool = True) -> str:
        """Turn ids below n + E into a string, special tokens left out or ``<MEM0>``."""
        numbers = [int(i) for i in ids]
        return readable(self._marked.decode(numbers, skip_special_tokens=skip_special))

    def encode_document(self, text: str, max_length: int) -> list[int]:
        """Make the compressor's row: ``<ENC><bos>text<eos>``, then M memory tokens.

        The row before the memory tokens is cut on the right to ``max_length + 3``, so a
        long text loses its eos: ``MemoryConfig.row_length(max_length)`` ids at most.
        """
        return self.encode_documents([text], max_length)[0]

    def encode_documents(
        self, texts: Sequence[str], max_length: int
    ) -> list[list[int]]:
        """Apply `encode_document` to many texts at once, in native threads."""
        longest = max_length + ROW_MARKS
        return [row[:longest] + list(self.memory_ids) for row in self._rows(texts)]

    def document_length(self, text: str) -> int:
        """Count the tokens of `text` as `encode_document` would see it, uncut."""
        return self.document_lengths([text])[0]

    def document_lengths(self, texts: Sequence[str]) -> list[int]:
        """Apply `document_length` to many texts at once, in native threads."""
        absent = self.bos == ""
        return [len(row) - ROW_MARKS + absent for row in self._rows(texts)]

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        start = mark("ENC") + self.bos
        strings = [start + self._words(text) + self.eos for text in texts]
        found = self._backend.encode_batch(strings, add_special_tokens=False)
        return [self._ids(*pair) for pair in zip(strings, found, strict=True)]

    def _ids(self, text: str, found: tokenizers.Encoding) -> list[int]:
        if self._controls is None or ESCAPE not in text:
            return found.ids
        return self._controls.encode(text, found)

    def _words(self, text: str) -> str:
        """Take from users' words what would spell special tokens; see `plain`."""
        return self._escape(plain(text))

    def _escape(self, text: str) -> str:
        return text if self._controls is None else self._controls.escape(text)

    def shorten(self, text: str, max_length: int) -> str:
        """Return the first tokens of a text, as many as `encode_document` keeps."""
        words = plain(text)
        spans = self.spans(words)
        return text if len(spans) <= max_length else words[: spans[max_length - 1][1]]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where each token of users' words begins and ends, in characters."""
        if self._controls is not None and self._controls.spelled(text):
            return self._controls.spans(text)
        return self.base(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]

    def chat(self, system: str, user: str, assistant: str | None = None) -> str:
        """Render a conversation with the tokenizer's chat template.

        A template that asks for today's date is given a fixed one, so that a prompt is
        the same on every day.

        Args:
          system: system text; may be empty. It goes before the user text, with a
            newline between, where the template refuses a system message or leaves it
            out.
          user: user text, in which `slots` may stand. Make it with the functions of
            `clara_jax.text.prompts`, or run users' words through ``plain``. Control
            tokens are the template's alone, unless ``control_tokens``.
          assistant: the answer; None ends the text where it begins.

        Raises:
          ClaraError: the template refuses the conversation, or leaves out what the
            user or the assistant says.
        """
        system, user = self._words(system), self._escape(user)
        answer = None if assistant is None else self._words(assistant)
        if not self.base.chat_template:
            head = self.bos + (f"{system}\n" if system else "") + f"{user}\n"
            return head if answer is None else head + answer + self.eos
        in_parts = self._in_parts
        if system and not self._takes_system:
            system, user = "", f"{system}\n{user}"
        try:
            return self._render(system, user, answer, in_parts)
        except Exception as error:
            raise ClaraError(
                f"the chat template of tokenizer {self.name} failed: {_line(error)}"
            ) from error

    def _render(
        self, system: str, user: str, answer: str | None, in_parts: bool
    ) -> str:
        texts = {"system": system or None, "user": user, "assistant": answer}
        messages: list[dict[str, Any]] = [
            {
                "role": role,
                "content": [{"type": "text", "text": text}] if in_parts else text,
            }
            for role, text in texts.items()
            if text is not None
        ]
        template = self.base.get_chat_template()
        if "strftime_now" in template:
            template = _PINNED + template
        return self.base.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=answer is None,
            enable_thinking=False,
        )

    @functools.cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes a system message, with and without an answer.

        The original asks for an error that says so. Other templates refuse in other
        words, or leave the message out, some of them only where an answer follows.
        """
        said = self._said(_PROBE, self._in_parts)
        return all(_PROBE.system in text for text in said or [""])

    @functools.cached_property
    def _in_parts(self) -> bool:
        """Whether the template wants texts as lists of parts, not as strings.

        Raises:
          ClaraError: it leaves out the user's or the assistant's text either way.
        """
        prompt = _PROBE._replace(system="")
        for in_parts in (False, True):
            texts = self._said(prompt, in_parts) or [""]
            if all(_PROBE.user in text for text in texts) and _ANSWER in texts[-1]:
                return in_parts
        if self._said(prompt, False) is None:
            return False  # `chat` says why
        raise ClaraError(
            f"the chat template of tokenizer {self.name} leaves out what the user or "
            "the assistant says; set chat_template in its tokenizer_config.json to "
            "that of the instruct model"
        )

    def _said(self, prompt: Prompt, in_parts: bool) -> list[str] | None:
        """Render a prompt of our own without and with an answer; None if refused."""
        try:
            return [self._render(*prompt, a, in_parts) for a in (None, _ANSWER)]
        except Exception:  # a template may raise anything
            return None

    def encode_chat(
        self, prompt: Prompt, assistant: str | None = None
    ) -> tuple[list[int], int]:
        """Tokenise a prompt, with its answer or open for one.

        Returns:
          The ids, and how many the prompt without answer has, rendered by itself (a
          count, not a common prefix, as in the original).
        """
        open_ids = self.encode(self.chat(*prompt))
        if assistant is None:
            return open_ids, len(open_ids)
        return self.encode(self.chat(*prompt, assistant)), len(open_ids)


def load_tokenizer(source: str | Path) -> Any:
    """Read the base tokenizer of a folder (a `Path` always is one) or hub name.

    A ``tokenizer.json`` is taken as it is, whatever class the configuration names, so
    that ids do not depend on the version of ``transformers``.

    Raises:
      ClaraError: there is none, or its files cannot be read.
    """
    path = Path(source)
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if path.is_dir() and not any((path / name).is_file() for name in files):
        raise ClaraError(f"tokenizer {source}: has no tokenizer.json; fetch it again")
    local = isinstance(source, Path) or str(source).startswith((".", os.sep))
    if not path.is_dir() and (local or path.exists()):
        raise ClaraError(f"tokenizer {source}: there is no such folder; fetch it again")
    exact = not path.is_dir() or (path / "tokenizer.json").is_file()
    loader: Any = transformers.AutoTokenizer
    if exact:
        loader = transformers.PreTrainedTokenizerFast
    level = transformers.logging.get_verbosity()
    # It remarks on classes of tokenizers, which do not concern users.
    transformers.logging.set_verbosity_error()
    try:
        return loader.from_pretrained(str(source))
    except Exception as error:
        raise ClaraError(
            f"tokenizer {source}: cannot be read: {_line(error)}"
        ) from error
    finally:
        transformers.logging.set_verbosity(level)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
