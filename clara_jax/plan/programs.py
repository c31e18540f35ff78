"""What a case compiles, and the figures of what comes of it, kept on disk."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

import clara_jax.plan.topology as machines
from clara_jax.clara import Tokens
from clara_jax.config import to_dict
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, read_json, writable_folder, write_json
from clara_jax.generate.batched import compress_batch
from clara_jax.generate.decode import DecodeConfig, jit_decode_step, jit_prefill
from clara_jax.model import count, logical_axes, zeros_cache
from clara_jax.model.attention import CACHE_AXES
from clara_jax.plan.cases import Case, mesh_text
from clara_jax.plan.counts import Reading, performed, readings, traffic, useful
from clara_jax.sharding import MESH_AXES, make_mesh, tree_shardings
from clara_jax.train.abstract_run import AbstractRun, abstract_run, placed

# What compiled programs and their figures are made by.
_SOURCES = (
    "config shapes.py sharding.py model clara stages train generate "
    "plan/cases.py plan/counts.py plan/programs.py"
).split()

_REFUSED = re.compile(r"out of memory|RESOURCE_EXHAUSTED", re.IGNORECASE)
_NEEDED = re.compile(
    r"(?:Used |\()([\d.]+)([KMGT])(?: of |\) exceeds available HBM \()([\d.]+)([KMGT])"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_WHOLE = ("memory", "marks", "head", "embedding")  # small weights without own axes


class Program(NamedTuple):
    """One function to be compiled."""

    name: str  # what it does
    function: Any
    arguments: tuple[Any, ...]  # besides those that `call` adds
    readings: list[Reading]  # what it does in one call
    call: Callable[..., Any] = lambda function, *given: function(*given)
    repeats: int = 1  # calls per unit of work


def run_of(case: Case) -> AbstractRun:
    """Return the training run of a case, in shapes."""
    return abstract_run(case.config, case.shape, case.text_vocab)


def programs(case: Case) -> list[Program]:
    """Return everything that a case compiles."""
    run, config = run_of(case), case.config
    if case.work == "train":
        return [Program("train step", run.step, run.arguments, readings(config))]
    if run.network.model.lora is None:
        raise ClaraError(
            f"--work {case.work}: stage {config.stage} has no adapters to work with"
        )
    if case.rows % case.parts:
        raise ClaraError(f"--rows {case.rows}: {case.parts} devices cannot share them")
    if case.work == "decode":
        return _decoding(case, run)
    length = config.memory.row_length(config.memory.doc_max_length)
    ids: Any = jax.ShapeDtypeStruct((case.rows, length), jnp.int32)
    tokens = Tokens(ids, ids.update(dtype=jnp.bool_), right_padded=True)
    return [
        Program(
            name="compress a batch of documents",
            function=compress_batch,
            arguments=(run.only("compressor", "memory"), tokens),
            readings=[Reading("compressor", case.rows, length, trained=False)],
            call=lambda function, *given: function(*given, "compressor"),
        )
    ]


def _decoding(case: Case, run: AbstractRun) -> list[Program]:
    config, model, rows = case.config, run.network.model, case.rows
    new, length = config.hooks.max_new_tokens, config.data.prompt_max_length
    decoding = DecodeConfig(max_new_tokens=new, eos_ids=(2,), pad_id=0)
    if "generator" not in {**run.network.adapters, **run.state.trainable}:
        raise ClaraError(f"--work decode: stage {config.stage} has no generator")

    def call(function: Callable[..., Any], *given: Any) -> Any:
        return function(model, *given, decoding)

    wanted = run.only("generator", "memory")
    variables = jax.eval_shape(lambda network: network.variables("generator"), wanted)
    dtype = jnp.dtype(model.config.dtype)
    prompt = jax.ShapeDtypeStruct((rows, length, model.config.width), dtype)
    given = variables, prompt, jax.ShapeDtypeStruct((rows, length), jnp.bool_)
    state = jax.eval_shape(functools.partial(call, jit_prefill), *given)
    first = Reading("generator", rows, length, False, logits=rows)
    halfway = length + new / 2 - 1
    token = Reading("generator", rows, 1, False, logits=rows, cached=halfway)
    step = (variables, state)
    return [
        Program("read the prompts", jit_prefill, given, [first], call),
        Program("one token more", jit_decode_step, step, [token], call, new - 1),
    ]


def arrays(case: Case) -> dict[str, Any]:
    """Return the placed shapes of what a train step takes, and of a decoding cache."""
    sizes = tuple(case.sizes.values())
    mesh = AbstractMesh(sizes, MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))
    run, config = run_of(case).on(mesh), case.config
    slots = config.data.prompt_max_length + config.hooks.max_new_tokens
    shape = dataclasses.replace(case.shape, dtype=config.dtype)
    rows = case.rows or config.data.batch_size
    cache = jax.eval_shape(lambda: zeros_cache(shape, rows, slots))
    rest = {name: getattr(run.state, name) for name in ("step", "key", "healthy")}
    trees: dict[str, Any] = {
        "backbone (frozen)": run.network.backbone,
        "adapters that learn": run.state.trainable,
        "adapters that are frozen": run.network.adapters,
        "optimizer state": run.state.opt_state,
        "rest of the state": rest,
        "batch": run.batch,
        f"cache of decoding, {rows} rows": on_mesh(mesh, cache),
    }
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


def show(case: Case) -> str:
    """Return the table of every array, and of what each device holds of it."""
    header = ("array", "shape", "dtype", "mesh axes", "bytes", "per device", "holds")
    trees = arrays(case)
    tables = {name: [header, *_rows(tree)] for name, tree in trees.items()}
    columns = zip(*itertools.chain(*tables.values()), strict=True)
    widths = [max(map(len, column)) for column in columns]
    aligned = [f"{{:{side}{n}}}" for side, n in zip("<<<<>><", widths, strict=True)]
    row_format = "  ".join(aligned)
    sizes = ", ".join(f"{name} {size}" for name, size in case.sizes.items())
    lines = [f"mesh {sizes}: {case.devices} devices"]
    for name, tree in trees.items():
        total, here = count(tree)[1], bytes_per_device(tree)
        lines += ["", f"{name}: {total:,} bytes, {here:,} per device"]
        lines += ["  " + row_format.format(*row).rstrip() for row in tables[name]]
    return "\n".join(lines) + "\n"


def _rows(tree: Any) -> Iterator[tuple[str, ...]]:
    for path, leaf in jax.tree.leaves_with_path(tree):
        axes = ["-"] * len(leaf.shape)
        for i, entry in enumerate(leaf.sharding.spec):
            names = (entry,) if isinstance(entry, str) else entry or ()
            # An axis of one device cuts nothing.
            cut = [name for name in names if leaf.sharding.mesh.shape[name] > 1]
            axes[i] = "+".join(cut) or "-"
        yield (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            "x".join(map(str, leaf.shape)) or "()",
            str(leaf.dtype),
            ",".join(axes) or "-",
            f"{leaf.size * leaf.dtype.itemsize:,}",
            f"{bytes_per_device(leaf):,}",
            "x".join(map(str, leaf.sharding.shard_shape(leaf.shape))) or "()",
        )


def on_mesh(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """Give shapes their places: weights by the table, all else split by rows."""

    def axes(path: tuple[str, ...], rank: int) -> tuple[str | None, ...]:
        if path[-1] in ("key", "value"):
            return CACHE_AXES
        known = logical_axes(path, rank)
        weights = any(known) or path[-1] in _WHOLE or "params" in path
        return known if weights else ("batch", *(None,) * (rank - 1))[:rank]

    return placed(tree, tree_shardings(mesh, tree, axes))


def bytes_per_device(tree: Any) -> int:
    """Return the exact bytes of placed shapes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def kept(case: Case, folder: Path) -> dict[str, Any] | None:
    """Return what `measure` has found before, if it has."""
    path = folder / f"{key(case)}.json"
    return {**read_json(path), "cached": True} if path.is_file() else None


def measure_apart(case: Case, folder: Path) -> dict[str, Any]:
    """Return what is kept; else call `measure` in a process that ends with this call.

    A compiler runs for minutes, in which Python handles no signal, and may crash.
    """
    if found := kept(case, folder):
        return found
    writable_folder(folder)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_result, args=(sender, case, folder))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        child.join()
        raise ClaraError(f"the compiler ended with status {child.exitcode}") from None
    finally:
        child.kill()
    if isinstance(found, ClaraError):
        raise found
    return found


def _send_result(sender: Connection, case: Case, folder: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # The process that waits gets them too, and ends this one.
        signal.signal(number, signal.SIG_IGN)
    try:
        sender.send(measure(case, folder))
    except ClaraError as error:
        sender.send(error)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Compile a case, after `topology.prepare`, and keep its figures in `folder`.

    A program that the compiler refuses for its memory is a result.

    Raises:
      ClaraError: machine, mesh and rows do not fit each other, or the compiler fails.
    """
    # Now: sources may be edited while this compiles.
    path = folder / f"{key(case)}.json"
    mesh = make_mesh(**case.sizes, devices=machines.devices(case.topology))
    arguments = {name: bytes_per_device(tree) for name, tree in arrays(case).items()}
    needed = sum(v for k, v in arguments.items() if not k.startswith("cache"))
    limit, found, before, todo = case.topology.chip.memory, [], None, []
    if case.work == "train" and 0 < limit < needed:
        gib = needed / machines.GIB
        text = f"the arguments alone need {gib:.2f} GiB: nothing was compiled"
        refused = {"message": text, "needed": float(needed), "limit": float(limit)}
        found = [{"name": "train step", "refused": refused, "compile_seconds": 0.0}]
    else:
        todo = programs(case)
    for program in todo:
        what = f"{program.name}, {case.topology.name}, {mesh_text(case.sizes)}"
        print(f"compiling: {what}", file=sys.stderr, flush=True)
        values, before = _compile(program, case, mesh, before)
        found.append(values)
        if before is None:
            break
    numbers = case.config.memory.num_memory * case.shape.width
    result = {
        "work": case.work,
        "stage": case.config.stage,
        "topology": case.topology.name,
        "slices": case.topology.slices,
        "devices": case.devices,
        "mesh": case.sizes,
        "accumulate": case.config.optim.accumulate,
        "remat": case.config.remat,
        "rows": case.rows or case.config.data.batch_size,
        "arguments": arguments,
        "vector_bytes": numbers * jnp.dtype(case.config.dtype).itemsize,
        "programs": found,
        "versions": _versions(case),
        "cached": False,
    }
    write_json(path, result)
    return result


def key(case: Case) -> str:
    """Return a digest of all that a result depends on, its sources included."""
    config = to_dict(case.config)
    for name in "workdir backbone tokenizer init_from seed".split():
        config.pop(name)
    for name in "train eval format window shuffle limit workers".split():
        config["data"].pop(name)
    config["hooks"] = config["hooks"]["max_new_tokens"]
    root, sources = Path(__file__).resolve().parent.parent, hashlib.blake2b()
    for name in _SOURCES:
        for file in sorted((root / name).glob("*.py")) or [root / name]:
            sources.update(file.read_bytes())
    values = {
        "work": case.work,
        "config": config,
        "shape": to_dict(case.shape),
        "text_vocab": case.text_vocab,
        "topology": [case.topology.name, case.topology.slices],
        "rows": case.rows,
        "versions": _versions(case),
        "sources": sources.hexdigest(),
    }
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _versions(case: Case) -> dict[str, str]:
    found = {name: version(name) for name in ("jax", "jaxlib")}
    if case.topology.is_tpu:
        found["libtpu"] = machines.libtpu_version()
    return found


def _compile(
    program: Program, case: Case, mesh: Mesh, before: Any
) -> tuple[dict[str, Any], Any]:
    """Return figures of one program, and it compiled unless that is refused."""
    function = functools.partial(program.call, program.function)
    needed = collections.Counter()
    for reading in program.readings:
        needed.update(useful(reading, case.config, case.shape))
    values: dict[str, Any] = {
        "name": program.name,
        "tokens": sum(reading.tokens for reading in program.readings),
        "rows": case.rows or case.config.data.batch_size,
        "repeats": program.repeats,
        "useful_flops": dict(needed),
        "performed_flops": performed(function, *program.arguments),
        "refused": None,
    }
    # Outside of the mesh, on whose devices nothing can be computed.
    run = run_of(case).on(mesh) if case.work == "train" else None
    given = there = run.arguments if run else on_mesh(mesh, program.arguments)
    if before is not None:
        # The state lies where reading the prompts has left it.
        there = given[0], placed(given[1], before.output_shardings)
    compiled: Any = None
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        if run is not None:
            lowered = run.lower(mesh)
        else:
            lowered = program.call(program.function.lower, *there)
        values["lower_seconds"] = time.perf_counter() - started
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if not _REFUSED.search(str(error)):
                raise ClaraError(
                    f"the compiler fails on {program.name}: {first_line(error)}"
                ) from error
            values["refused"] = _refusal(str(error))
    seconds = time.perf_counter() - started
    values["compile_seconds"] = seconds - values["lower_seconds"]
    if compiled is None:
        return values, None
    memory = compiled.memory_analysis()
    values["memory"] = {
        "placed": bytes_per_device(given),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    values["compiler_flops"] = float((compiled.cost_analysis() or {}).get("flops", 0.0))
    text = compiled.as_text()
    values["traffic"] = traffic(text, case.devices, case.sizes["slice"])
    return values, compiled


def _refusal(text: str) -> dict[str, Any]:
    """Return the memory that a compiler says it would have needed."""
    first = text.strip().splitlines()[0]
    said: dict[str, Any] = {"message": first[:300]}
    if found := _NEEDED.search(text):
        said["needed"] = float(found[1]) * _UNITS[found[2]]
        said["limit"] = float(found[3]) * _UNITS[found[4]]
        # The short form speaks of temporaries alone.
        said["alone"] = "temporaries" in first
    return said
