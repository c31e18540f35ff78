"""What is planned: which work, of which backbone, on which machine and mesh."""

import argparse
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clara_jax.commands import parse_mesh
from clara_jax.config import REMAT_POLICIES, MeshConfig, ModelConfig, RunConfig
from clara_jax.convert import load_config
from clara_jax.errors import ClaraError
from clara_jax.model import PRESETS
from clara_jax.plan.topology import Topology, devices
from clara_jax.sharding import MESH_AXES, mesh_sizes
from clara_jax.text import load_tokenizer
from clara_jax.train.experiments import read_experiment

HUB = {
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral_7b",
    "microsoft/Phi-4-mini-instruct": "phi4_mini",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2_135m",
}
"""Hub names whose shapes are known without a file."""

TEXT_VOCAB = {"phi4_mini": 200_029}  # tokenizers that are shorter than the table


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled and measured."""

    work: str  # train, compress or decode
    config: RunConfig  # with mesh and microbatches settled
    shape: ModelConfig  # of the backbone
    text_vocab: int  # of its tokenizer
    topology: Topology
    rows: int = 0  # documents or prompts at a time (compress, decode)

    def __str__(self) -> str:
        count, remat = self.config.optim.accumulate, self.config.remat
        return f"mesh {mesh_text(self.sizes)}, {count} microbatches, remat {remat}"

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each mesh axis."""
        return {name: getattr(self.config.mesh, name) for name in MESH_AXES}

    @property
    def devices(self) -> int:
        """Devices of the whole mesh."""
        return math.prod(self.sizes.values())

    @property
    def parts(self) -> int:
        """Devices that share the rows of a batch."""
        return self.devices // self.config.mesh.tensor

    def split(self, accumulate: int | float, remat: str = "") -> "Case":
        """Return the case with about so many microbatches, and another remat policy."""
        counts = microbatches(self.config.data.batch_size, self.parts)
        count = min(counts, key=lambda n: (abs(n - max(1, int(accumulate))), n))
        optim = dataclasses.replace(self.config.optim, accumulate=count)
        remat = remat or self.config.remat
        config = dataclasses.replace(self.config, optim=optim, remat=remat)
        return dataclasses.replace(self, config=config)


def make_case(
    arguments: argparse.Namespace, overrides: Sequence[str], topology: Topology
) -> tuple[Case, list[str]]:
    """Return the case that a command line describes, and notes on what it left open.

    With ``--show-sharding`` the mesh alone says how many devices there are.
    """
    config = _choose_stage(arguments, overrides)
    names = [text.lstrip("-") for text in overrides]
    if arguments.mesh:
        if given := [name for name in names if name.startswith("config.mesh")]:
            raise ClaraError(f"--mesh and --{given[0]} say the same thing; give one")
        config = dataclasses.replace(config, mesh=mesh_config(arguments.mesh))
    shape, vocab, notes = backbone_shape(config, arguments.backbone, arguments.config)
    if arguments.show_sharding:
        sizes = dataclasses.astuple(config.mesh)
        count = math.prod(size for size in sizes if size > 0)
    else:
        count = len(devices(topology))
    if config.mesh == MeshConfig() and (arguments.mesh or arguments.show_sharding):
        # Named and yet the default: all devices hold copies.
        config = dataclasses.replace(config, mesh=MeshConfig(data=count))
    fixed = any(name.startswith("config.optim.accumulate") for name in names)
    config, more = settle(config, count, slices=topology.slices, fixed=fixed)
    case = Case(arguments.work, config, shape, vocab, topology)
    if arguments.rows < 0 or arguments.documents < 0:
        raise ClaraError("--rows and --documents must not be negative")
    if case.work != "train":
        case = dataclasses.replace(case, rows=arguments.rows or 8 * case.parts)
    elif arguments.rows:
        raise ClaraError(
            "--rows is of compress and decode; set --config.data.batch_size"
        )
    if more:
        flags = [
            f"--config.mesh.{name}={size}"
            for name, size in case.sizes.items()
            if size > 1 or name == "data"
        ]
        flags.append(f"--config.optim.accumulate={config.optim.accumulate}")
        more.append(f"to train so: {' '.join(flags)}")
    return case, notes + more


def _choose_stage(arguments: argparse.Namespace, overrides: Sequence[str]) -> RunConfig:
    file = arguments.config
    runs = read_experiment([f"--config={file}", *overrides]).runs
    if not arguments.stage and len(runs) > 1:
        names = ", ".join(Path(run.workdir).name for run in runs)
        raise ClaraError(f"{file} has several stages; give --stage, one of {names}")
    for run in runs:
        if arguments.stage in ("", Path(run.workdir).name, run.stage):
            return run
    stages = ", ".join(run.stage for run in runs)
    raise ClaraError(f"--stage: no '{arguments.stage}' in {file}; it has {stages}")


def sweep_settings(
    arguments: argparse.Namespace, case: Case
) -> tuple[list[Case], list[int], list[str]]:
    """Return the meshes, microbatches and remat policies that a sweep is to try."""
    if case.work != "train":
        raise ClaraError("--sweep is of training; leave --work out")
    texts = filter(None, arguments.sweep_meshes.split(";"))
    meshes = [_with_mesh(case, mesh_config(text)) for text in texts]
    if not meshes:
        meshes = [case] if arguments.mesh else list(likely_meshes(case))
    remats = [name for name in arguments.sweep_remat.split(",") if name]
    for name in remats:
        if name not in REMAT_POLICIES:
            known = ", ".join(REMAT_POLICIES)
            raise ClaraError(f"--sweep-remat: '{name}' is none of {known}")
    try:
        counts = [int(n) for n in arguments.sweep_accumulate.split(",") if n]
    except ValueError:
        raise ClaraError("--sweep-accumulate must be numbers, such as 1,2,4") from None
    return meshes, counts, remats


def likely_meshes(case: Case) -> Iterator[Case]:
    """Yield the case on meshes worth a try: weights cut as far as possible first."""
    slices = case.topology.slices
    for tensor, data in itertools.product((1, 2, 4), (1, 2, 4)):
        fsdp = case.devices // (tensor * data * slices)
        # Tensor parallelism wants to divide the heads of keys.
        if case.shape.num_kv_heads % tensor == 0:
            with contextlib.suppress(ClaraError):  # it does not fit devices or rows
                yield _with_mesh(case, MeshConfig(data, fsdp, tensor, slices))


def _with_mesh(case: Case, mesh: MeshConfig) -> Case:
    mesh = mesh if mesh != MeshConfig() else MeshConfig(data=case.devices)
    config = dataclasses.replace(case.config, mesh=mesh)
    settled, _ = settle(config, case.devices, slices=case.topology.slices)
    return dataclasses.replace(case, config=settled)


def microbatches(rows: int, parts: int) -> list[int]:
    """Return the numbers of microbatches whose rows `parts` devices can share."""
    return [n for n in range(1, rows + 1) if rows % n == 0 and rows // n % parts == 0]


def mesh_text(sizes: Mapping[str, int]) -> str:
    """Return a mesh as ``--mesh`` takes it, axes of one device left out."""
    named = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    return ",".join(named) or "data=1"


def mesh_config(text: str) -> MeshConfig:
    """Read ``fsdp=8,tensor=2``; axes not named are 1, ``data`` takes what is left."""
    return MeshConfig(**parse_mesh(text, MESH_AXES))


def settle(
    config: RunConfig, count: int, *, slices: int = 1, fixed: bool = False
) -> tuple[RunConfig, list[str]]:
    """Choose a mesh of `count` devices, and microbatches whose rows it can share.

    What the config sets is kept where it can be; `fixed` microbatches always are.
    Returns also notes on what was changed.

    Raises:
      ClaraError: mesh, machine and batch do not fit each other.
    """
    notes = []
    mesh, rows = config.mesh, config.data.batch_size
    if mesh == MeshConfig():
        notes.append("no mesh was given")
        parts = math.gcd(rows, count)
        if parts % slices:
            raise ClaraError(f"{rows} rows of a batch cannot go to {slices} slices")
        mesh = MeshConfig(1, parts // slices, count // parts, slices)
    elif slices > 1 and mesh.slice == 1:
        mesh = dataclasses.replace(mesh, slice=slices)
    sizes = mesh_sizes(count, **dataclasses.asdict(mesh))
    if slices > 1 and sizes[0] != slices:
        raise ClaraError(f"mesh slice {sizes[0]}: the machine has {slices} slices")
    parts = math.prod(sizes[:3])
    if rows % parts:
        raise ClaraError(
            f"a batch of {rows} rows cannot be shared by {parts} devices; make "
            f"data.batch_size a multiple of {parts}, or give some of them to tensor"
        )
    accumulate = config.optim.accumulate
    best = max(n for n in microbatches(rows, parts) if n <= accumulate)
    if best != accumulate:
        if fixed:
            raise ClaraError(
                f"config field 'optim.accumulate': {accumulate} leaves {rows} rows in "
                f"parts of {rows / accumulate:g}, which {parts} devices cannot share; "
                f"take {best}"
            )
        notes.append(
            f"optim.accumulate {accumulate} leaves fewer rows than devices that share "
            f"them: taken as {best}"
        )
    settled = MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True)))
    optim = dataclasses.replace(config.optim, accumulate=best)
    return dataclasses.replace(config, mesh=settled, optim=optim), notes


def backbone_shape(
    config: RunConfig, named: str, hint: str = ""
) -> tuple[ModelConfig, int, list[str]]:
    """Find the shape of a run's backbone, the length of its tokenizer, and notes.

    Args:
      config: of the run.
      named: a preset, a hub name that is known, a folder or a file; may be empty.
      hint: another text that may name a preset: the config file's path.
    """
    notes = []
    name = named or config.backbone
    if not name and config.init_from and Path(config.init_from).is_dir():
        name = config.init_from
    if not name:
        texts = (config.init_from, config.workdir, hint)
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
