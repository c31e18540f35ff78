"""Convert a model to a model folder, or a CLaRa model to what others read.

python -m clara_jax.convert hf       FOLDER_OR_HUB_NAME DESTINATION
python -m clara_jax.convert gguf     FILE.gguf          DESTINATION
python -m clara_jax.convert apple    FOLDER_OR_HUB_NAME DESTINATION [--base BASE]
                                                        [--rate RATE]
python -m clara_jax.convert peft     ADAPTERS_FOLDER    DESTINATION [--base BASE]
python -m clara_jax.convert to-apple MODEL DESTINATION
python -m clara_jax.convert to-peft  MODEL DESTINATION [--role ROLE]
python -m clara_jax.convert to-hf    MODEL DESTINATION --role ROLE
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from clara_jax.clara import ROLES
from clara_jax.commands import Parser, add_rate, run, start
from clara_jax.convert.apple import write_apple_checkpoint
from clara_jax.convert.hf import write_hf_folder
from clara_jax.convert.load import load_model
from clara_jax.convert.model_folder import (
    ModelFolder,
    check_destination,
    write_model_folder,
)
from clara_jax.convert.peft import write_peft_folder
from clara_jax.model import count

READERS = {
    "hf": ("a Hugging Face folder or hub name", "a Hugging Face base model"),
    "gguf": ("a .gguf file", "a llama.cpp file, dequantized"),
    "apple": (
        "a checkpoint's folder or hub name, as apple/CLaRa-7B-E2E",
        "a checkpoint of the original CLaRa",
    ),
    "peft": (
        "a folder that to-peft wrote, or its hub name",
        "PEFT adapters and special rows",
    ),
}
"""Forms that become a model folder: what the source is, and what it holds."""

WRITERS = {
    "to-apple": (
        "a checkpoint of the original CLaRa",
        "that of the checkpoint it was read from, else the base's",
        "Its config.json has no field for some settings: LoRA is scaled by 2 and "
        "covers all layers (ours is rewritten so), and top-k has temperature 0.02.",
    ),
    "to-peft": (
        "PEFT folders of LoRA adapters",
        "float32",
        "One folder a role, for peft.PeftModel.from_pretrained. LoRA has no place for "
        "the rows of special tokens (memory tokens, AE, ENC, SEP): they are written "
        "beside, to special_rows.safetensors.",
    ),
    "to-hf": (
        "a Hugging Face model of one role",
        "the base's",
        "The role's LoRA is merged into the weights, and the tables end with the rows "
        "of the special tokens, which the tokenizer knows. A base model is written as "
        "it is, without --role.",
    ),
}
"""Forms for others to read: what is written, its default type, what to know of it."""


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    what = "Convert a model to a model folder, or a CLaRa model (to-...) to what others"
    parser = Parser(prog="python -m clara_jax.convert", description=f"{what} read.")
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")
    for form, (source, text) in READERS.items():
        sub = forms.add_parser(form, help=text, description=f"Convert {text}.")
        dtype = "type to keep the base weights in (default: the source's)"
        _add_options(sub, source, dtype, base=form in ("apple", "peft"))
        if form == "apple":
            add_rate(sub)
    for form, (text, dtype, more) in WRITERS.items():
        description = f"Write {text}. {more}"
        sub = forms.add_parser(form, help=f"write {text}", description=description)
        source = "a CLaRa model: model folder, run folder, original checkpoint or name"
        _add_options(sub, source, f"type of the tensors (default: {dtype})")
        add_rate(sub)
        if form != "to-apple":
            text = "whose adapter" + " (default: all)" * (form == "to-peft")
            sub.add_argument("--role", choices=ROLES, default="", help=text)
        if form != "to-hf":
            text = "what to call the base model in the files (default: the name or "
            text += "path that it came from)"
            sub.add_argument("--base-name", default="", help=text)
    return parser


def _add_options(
    sub: argparse.ArgumentParser, source: str, dtype: str, base: bool = True
) -> None:
    sub.add_argument("source", help=source)
    sub.add_argument("destination", type=Path, help="a new folder")
    choices = ("float32", "bfloat16")
    sub.add_argument("--dtype", choices=choices, default="", help=dtype)
    text = "the base model (folder, hub name, .gguf or model folder; default: the one "
    if base:
        sub.add_argument("--base", default="", help=text + "that the source names)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its result is the exit status, see `clara_jax.commands`."""
    options = parser().parse_args(arguments)
    if not os.environ.get("JAX_PLATFORMS"):
        # Nothing is computed: do not wait for, or take memory of, an accelerator.
        jax.config.update("jax_platforms", "cpu")
    return run(lambda: _convert(options), "nothing was written")


def _convert(options: argparse.Namespace) -> None:
    form, dtype, destination = options.form, options.dtype, options.destination
    check_destination(destination)
    if form in READERS:
        base, rate = getattr(options, "base", ""), getattr(options, "rate", 0)
        model = load_model(options.source, dtype, base=base, rate=rate, form=form)
    else:
        # Cast on the way out: merging wants what the source has.
        model = load_model(options.source, base=options.base, rate=options.rate)
    print(f"writing {destination} ...", file=sys.stderr)
    if form == "to-apple":
        write_apple_checkpoint(destination, model, dtype, options.base_name)
    elif form == "to-peft":
        roles = [options.role] if options.role else []
        write_peft_folder(destination, model, roles, dtype, options.base_name)
    elif form == "to-hf":
        write_hf_folder(destination, model, options.role, dtype)
    else:
        write_model_folder(destination, model)
    if form in READERS:
        print(_summary(model, destination))
        return
    size = sum(p.stat().st_size for p in destination.rglob("*") if p.is_file())
    names = ", ".join(sorted(path.name for path in destination.iterdir()))
    print(f"{destination}: {size:,} bytes in {names}")


def _summary(model: ModelFolder, destination: Path) -> str:
    """Describe in a few lines what was converted, and what to run next."""
    config = model.config
    numbers, size = count(model.params)
    dtype = config.param_dtype
    lines = [
        f"{destination}: {numbers:,} parameters, {size:,} bytes in {dtype}",
        f"  {config.num_layers} layers of width {config.width}, {config.num_heads} "
        f"heads ({config.num_kv_heads} for keys and values), vocabulary "
        f"{config.vocab_size:,} (tokenizer {len(model.tokenizer):,})",
    ]
    option = "backbone"
    if clara := model.clara:
        option, roles = "init_from", [r for r in model.adapters or {} if r != "memory"]
        lines.append(
            f"  adapters: {', '.join(roles)}; LoRA rank {clara.lora.rank}; "
            f"{clara.memory.num_memory} memory vectors per document of "
            f"{clara.memory.doc_max_length} tokens"
        )
    command = "python -m clara_jax.train --config configs/X.py"
    return "\n".join([*lines, f"next: {command} --config.{option}={destination}"])


if __name__ == "__main__":
    start(main)
