"""Convert a model to a model folder.

python -m clara_jax.convert hf    FOLDER_OR_HUB_NAME DESTINATION
python -m clara_jax.convert gguf  FILE.gguf          DESTINATION
python -m clara_jax.convert apple CHECKPOINT_FOLDER  DESTINATION [--base BASE]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from clara_jax.convert.folder import (
    ModelFolder,
    check_destination,
    write_model_folder,
)
from clara_jax.convert.load import load_apple, load_gguf, load_hf
from clara_jax.errors import ClaraError
from clara_jax.files import told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    if not os.environ.get("JAX_PLATFORMS"):
        # Nothing is computed: do not wait for, or take memory of, an accelerator.
        jax.config.update("jax_platforms", "cpu")
    try:
        destination = Path(options.destination)
        check_destination(destination)
        model = _load(options)
        print(f"writing {destination} ...", file=sys.stderr)
        write_model_folder(destination, model)
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    print(summary(model, destination))
    return 0


def summary(model: ModelFolder, destination: Path) -> str:
    """A few lines on what was converted and what to run next."""
    config = model.config
    leaves = jax.tree.leaves(model.params)
    count, size = sum(a.size for a in leaves), sum(a.nbytes for a in leaves)
    lines = [
        f"{destination}: {count:,} parameters, {size:,} bytes in {config.param_dtype}",
        f"  {config.num_layers} layers of width {config.width}, {config.num_heads} "
        f"heads ({config.num_kv_heads} for keys and values), vocabulary "
        f"{config.vocab_size:,} (tokenizer {len(model.tokenizer):,})",
    ]
    if model.clara is None:
        lines.append(
            "next: python -m clara_jax.train --config configs/X.py "
            f"--config.backbone={destination}"
        )
        return "\n".join(lines)
    roles = [name for name in model.adapters or {} if name != "memory"]
    lines += [
        f"  adapters: {', '.join(roles)}; LoRA rank {model.clara.lora.rank}; "
        f"{model.clara.memory.num_memory} memory vectors per document of "
        f"{model.clara.memory.doc_max_length} tokens",
        "next: python -m clara_jax.train --config configs/X.py "
        f"--config.init_from={destination}",
    ]
    return "\n".join(lines)


def _load(options: argparse.Namespace) -> ModelFolder:
    def progress(items: Any, total: int) -> Any:
        return tqdm(items, "reading", total, unit=" tensors", leave=False)

    if options.form == "apple":
        return load_apple(options.source, options.base, options.dtype, progress)
    load = load_gguf if options.form == "gguf" else load_hf
    return load(options.source, options.dtype, progress)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.convert",
        description="Convert a model to a model folder.",
    )
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")
    for form, source, text in (
        ("hf", "a Hugging Face folder or hub name", "a Hugging Face base model"),
        ("gguf", "a .gguf file", "a llama.cpp file, dequantized"),
        ("apple", "the checkpoint's folder", "a checkpoint of the original CLaRa"),
    ):
        sub = forms.add_parser(form, help=text, description=f"Convert {text}.")
        sub.add_argument("source", help=source)
        sub.add_argument("destination", help="a new folder")
        sub.add_argument(
            "--dtype",
            choices=("float32", "bfloat16"),
            default="",
            help="type to keep the base weights in (default: the source's)",
        )
        if form == "apple":
            sub.add_argument(
                "--base",
                default="",
                help="the base model (folder, hub name, .gguf or model folder; "
                "default: the one that the checkpoint names)",
            )
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and tidy up
    sys.exit(main())
