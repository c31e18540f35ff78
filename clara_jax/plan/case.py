"""One thing to plan: which work, of which backbone, on which machine and mesh."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from clara_jax.config import MeshConfig, ModelConfig, RunConfig
from clara_jax.convert import load_config
from clara_jax.errors import ClaraError
from clara_jax.model import PRESETS
from clara_jax.plan.topology import Topology
from clara_jax.sharding import MESH_AXES, mesh_sizes
from clara_jax.text import load_tokenizer

HUB = {
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral_7b",
    "microsoft/Phi-4-mini-instruct": "phi4_mini",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2_135m",
}
"""Hub names whose shapes are known without a file."""

TEXT_VOCAB = {"phi4_mini": 200_029}
"""Length of a preset's tokenizer, where its table has more rows."""

WORK = ("train", "compress", "decode")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled and measured.

    Attributes:
      work: out of `WORK`.
      config: with mesh and microbatches settled.
      shape, text_vocab: of the backbone.
      topology: the machine.
      rows: documents or prompts at a time (compress, decode).
    """

    work: str
    config: RunConfig
    shape: ModelConfig
    text_vocab: int
    topology: Topology
    rows: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each mesh axis."""
        return {name: getattr(self.config.mesh, name) for name in MESH_AXES}

    @property
    def devices(self) -> int:
        """Devices of the whole mesh."""
        return math.prod(self.sizes.values())

    @property
    def mesh_text(self) -> str:
        """The mesh as ``--mesh`` takes it, axes of one device left out."""
        named = [f"{name}={size}" for name, size in self.sizes.items() if size > 1]
        return ",".join(named) or "data=1"


def parse_mesh(text: str) -> MeshConfig:
    """Read ``fsdp=8,tensor=2``; axes not named are 1, ``data`` takes what is left.

    Raises:
      ClaraError: an axis that the table does not know, or no number.
    """
    sizes: dict[str, int] = {}
    for part in text.replace(" ", ",").split(","):
        if not part:
            continue
        name, _, size = part.partition("=")
        if name not in MESH_AXES:
            raise ClaraError(
                f"--mesh: no axis '{name}'; there are {', '.join(MESH_AXES)}"
            )
        if not size.lstrip("-").isdigit():
            raise ClaraError(f"--mesh: '{part}' must be {name}=NUMBER")
        if name in sizes:
            raise ClaraError(f"--mesh: names {name} twice")
        sizes[name] = int(size)
    if not sizes:
        raise ClaraError("--mesh: names no axis; write for example fsdp=16")
    return MeshConfig(**sizes)


def settle(
    config: RunConfig, count: int, *, slices: int = 1, fixed: bool = False
) -> tuple[RunConfig, list[str]]:
    """Choose what the config leaves open: the mesh, and microbatches that it can share.

    Args:
      config: of a run.
      count: devices of the machine.
      slices: TPU slices among which they lie.
      fixed: whether the user himself has set ``optim.accumulate``.

    Returns:
      A config whose mesh multiplies to `count`, and notes on what was changed.

    Raises:
      ClaraError: mesh, machine and batch do not fit each other.
    """
    notes = []
    rows, mesh = config.data.batch_size, config.mesh
    if slices > 1 and mesh.slice == 1:
        mesh = dataclasses.replace(mesh, slice=slices)
    if config.mesh == MeshConfig():
        parts = math.gcd(rows, count)
        if parts % slices:
            raise ClaraError(f"{rows} rows of a batch cannot go to {slices} slices")
        mesh = MeshConfig(
            data=1, slice=slices, fsdp=parts // slices, tensor=count // parts
        )
    sizes = mesh_sizes(count, **dataclasses.asdict(mesh))
    if slices > 1 and sizes[0] != slices:
        raise ClaraError(f"mesh slice {sizes[0]}: the machine has {slices} slices")
    settled = MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True)))
    parts = math.prod(sizes[:3])
    accumulate = config.optim.accumulate
    if rows % parts:
        raise ClaraError(
            f"a batch of {rows} rows cannot be shared by {parts} devices; make "
            f"data.batch_size a multiple of {parts}, or give some of them to tensor"
        )
    if rows // accumulate % parts:
        fits = [
            n
            for n in range(accumulate, 0, -1)
            if rows % n == 0 and rows // n % parts == 0
        ]
        if fixed or not fits:
            raise ClaraError(
                f"config field 'optim.accumulate': {accumulate} leaves {rows} rows in "
                f"parts of {rows / accumulate:g}, which {parts} devices cannot share; "
                f"take {fits[0] if fits else 1}"
            )
        accumulate = fits[0]
    if config.mesh == MeshConfig():
        notes.append("no mesh was given")
    if accumulate != config.optim.accumulate:
        notes.append(
            f"optim.accumulate {config.optim.accumulate} leaves fewer rows than "
            f"devices that share them: taken as {accumulate}"
        )
    optim = dataclasses.replace(config.optim, accumulate=accumulate)
    return dataclasses.replace(config, mesh=settled, optim=optim), notes


def backbone_shape(
    config: RunConfig, named: str, hints: tuple[str, ...] = ()
) -> tuple[ModelConfig, int, list[str]]:
    """Find the shape of a run's backbone without reading weights.

    Args:
      config: of the run.
      named: a preset, a hub name that is known, a folder or a file; may be empty.
      hints: other texts that may name a preset, such as the config file's path.

    Returns:
      Its shape, the length of its tokenizer, and a note where the name was inferred.

    Raises:
      ClaraError: the config names no backbone, and nothing hints at one preset.
    """
    notes = []
    name = named or config.backbone
    if not name and config.init_from and Path(config.init_from).is_dir():
        name = config.init_from
    if not name:
        texts = (config.init_from, config.workdir, *hints)
        found = {p for p in PRESETS if any(p in text for text in texts)}
        if len(found) != 1:
            raise ClaraError(
                f"which backbone? The config takes that of '{config.init_from}', which "
                f"is not here; give --backbone, a folder or one of {', '.join(PRESETS)}"
            )
        name = found.pop()
        notes.append(f"backbone {name}, by the names in the config")
    name = HUB.get(name, name.removeprefix("random:"))
    if name in PRESETS:
        shape, vocab = PRESETS[name], TEXT_VOCAB.get(name)
        if config.backbone.startswith("random:") and config.tokenizer:
            vocab = len(load_tokenizer(config.tokenizer))
            rows = max(shape.vocab_size, vocab)
            shape = dataclasses.replace(shape, vocab_size=rows)
        return shape, vocab or shape.vocab_size, notes
    if not Path(name).exists():
        raise ClaraError(
            f"backbone '{name}' is neither here nor one of {', '.join(PRESETS)}; give "
            "--backbone"
        )
    shape = load_config(name)
    try:
        inner = Path(name) / "tokenizer"
        tokenizer = config.tokenizer or str(inner if inner.is_dir() else name)
        vocab = len(load_tokenizer(tokenizer))
    except (ClaraError, OSError):
        notes.append("no tokenizer found: taken as long as the embedding table")
        vocab = shape.vocab_size
    return shape, min(vocab, shape.vocab_size), notes
