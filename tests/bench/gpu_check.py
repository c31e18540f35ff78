"""What a GPU must show before anything else: that it computes what the CPU computes.

    python tests/bench/gpu_check.py [--only scp cudnn] [--json gpu_check.json]

Nothing is downloaded or needed: a random model with heads of 64, random tokens. A line
for each check: what was found beside its limit, and seconds; 1 if any has failed.

``float32 STAGE``: loss and gradients against those of the CPU, both at the highest
precision; and how far the default (TF32 on NVIDIA GPUs) is from them. ``bfloat16
STAGE``: against float32 on the same device. ``train``: the train step calls cuDNN's
attention, and lowers the loss. ``attention``: cuDNN's is XLA's. ``decode``: tokens
decoded with a cache are those that one forward pass predicts. ``search``: the exact
search finds what numpy finds.

Checks run side by side, since compiling takes most of their time. A fault that ends the
GPU's work for the whole process fails them all; ``--threads 1`` shows which was first.
Without an accelerator the CPU is compared with itself.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import made_up
import numpy as np
from device_figures import device_memory
from random_runs import attention_of

from clara_jax.clara import Batch, Loss, Network
from clara_jax.config import LoraConfig, OptimConfig, SelectionConfig
from clara_jax.generate import DecodeConfig, decode_loop, prefill
from clara_jax.model.attention import causal_attention, fused_attention
from clara_jax.search.codecs import CODECS
from clara_jax.search.exact import ExactSearcher
from clara_jax.sharding import make_mesh, named_sharding
from clara_jax.stages import STAGES, make_loss
from clara_jax.testing import PAD, random_batch, toy_network
from clara_jax.train import init_state, make_optimizer, make_schedule, make_train_step
from clara_jax.train.step import compile_on_mesh

VOCAB, MEMORY, DOCUMENTS, TRAINED, STEPS = 4096, 4, 2, "scp", 8

FLOAT32, LOSS, COSINE, ATTENTION, SCORE = 1e-4, 4e-2, 5e-3, 2e-2, 1e-5
TIES = {"float32": 1e-3, "bfloat16": 0.1}
"""Limits. float32: of a loss, and of gradients as a share of each leaf's largest entry;
100 roundings of 6e-8 make 1e-6, which a temperature of 0.02 may multiply by 50.
bfloat16: of gradients 1 - cosine; 100 roundings of 0.2% make 2%, the top-k 5%: 2e-4 to
1e-3. Of a loss in nats; the temperature makes 0.05 of what cosines lose, rows average.
Attention: a share of the largest entry. Ties: of logits, which spread by about 1."""

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How the CPU's programs are compiled, which run once: in half the time."""

VERSIONS = "clara_jax jax jaxlib nvidia-cudnn-cu12 nvidia-cudnn-cu13".split()


class Found(NamedTuple):
    """What a check has found: values with their limits, none if it cannot be shown."""

    values: dict[str, tuple[float, float]]
    note: str

    def result(self) -> str:
        """Whether all values keep their limits, which NaN does not."""
        kept = [value <= limit for value, limit in self.values.values()]
        return "skipped" if not kept else "ok" if all(kept) else "FAILED"

    def line(self) -> str:
        """Values, limits and note."""
        shown = [
            f"{name} {value:.2g} {'<=' if value <= limit else 'NOT <='} {limit:g}"
            for name, (value, limit) in self.values.items()
        ]
        return ", ".join([*shown, self.note])


class Checks:
    """All checks of one device, on one random model."""

    def __init__(self, device: jax.Device) -> None:
        self.device = device
        self.cpu = jax.local_devices(backend="cpu")[0]
        self.nvidia = "NVIDIA" in device.device_kind
        lora = LoraConfig(rank=8, alpha=2.0, dropout=0.1)
        shape = {"width": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
        shape |= {"mlp_dim": 512, "num_memory": MEMORY, "text_vocab": VOCAB}
        self.kept, self.network = {}, jax.device_get(toy_network(lora=lora, **shape))
        rows = self.network.backbone["rows"]  # which shall score no higher than words
        rows["head"] = rows["head"] / np.float32(shape["width"] ** 0.5)
        self.locks = {name: threading.Lock() for name in (*STAGES, "train")}

    def table(self) -> dict[str, Callable[[], Found]]:
        """Names and checks, in their order."""
        part = functools.partial
        found = {f"float32 {name}": part(self.float32, name) for name in STAGES}
        found |= {f"bfloat16 {name}": part(self.bfloat16, name) for name in STAGES}
        found |= {"train cudnn": self.cudnn, "train loss": self.train}
        found |= {"attention causal": part(self.attention, None)}
        found |= {"attention window": part(self.attention, 128)}
        found |= {f"decode {dtype}": part(self.decode, dtype) for dtype in TIES}
        return found | {f"search {codec}": part(self.search, codec) for codec in CODECS}

    def once(self, name: str, key: Any, make: Callable[[], Any]) -> Any:
        """Make what several checks need, once."""
        with self.locks[name]:
            if key not in self.kept:
                self.kept[key] = make()
            return self.kept[key]

    def typed(self, dtype: str, **changes: Any) -> Network:
        """The network, computing in another type."""
        model = self.network.model
        config = dataclasses.replace(model.config, dtype=dtype, **changes)
        return dataclasses.replace(self.network, model=model.clone(config=config))

    def parts(
        self, stage: str, dtype: str, **changes: Any
    ) -> tuple[Loss, dict[str, Any], Network, Batch]:
        """Loss, trained adapters, what is frozen, and batch of a stage."""
        sizes = {"documents": DOCUMENTS, "candidates": 4, "lengths": (57, 40)}
        # Candidates' cosines lie 0.01 apart at least: 10 times what bfloat16 loses.
        batch = random_batch(stage, network=self.network, seed=35, **sizes)
        selection = SelectionConfig(top_k=DOCUMENTS)
        loss = make_loss(stage, selection=selection)
        trains, network = STAGES[stage].trains, self.typed(dtype, **changes)
        if trains == ("backbone",):
            whole = {"backbone": network.backbone["params"]}
            bare = Network(network.model, {"params": None}, {})
            return loss, whole, bare, batch
        frozen = dict(network.adapters)
        trained = {name: frozen.pop(name) for name in trains}
        return loss, trained, dataclasses.replace(network, adapters=frozen), batch

    def slopes(self, stage: str, dtype: str, precision="highest", device=None) -> Any:
        """Loss, gradients and attention of a stage, without dropout."""
        device = device or self.device

        def make() -> Any:
            loss, *given = self.parts(stage, dtype)

            def total(trained, frozen, batch):
                sums, weights, _ = loss(frozen.with_adapters(trained), batch, None)
                return sum(sums[name] / weights[name] for name in sums)

            given = jax.device_put(given, device)
            with jax.default_matmul_precision(precision):
                program = compiled(jax.jit(jax.value_and_grad(total)), device, *given)
            value, gradients = jax.device_get(program(*given))
            return float(value), gradients, attention_of(program)

        return self.once(stage, (stage, device, dtype, precision), make)

    def float32(self, stage: str) -> Found:
        """Loss and gradients of the device against the CPU's."""
        value, gradients, _ = self.slopes(stage, "float32", device=self.cpu)
        own, ours, _ = self.slopes(stage, "float32")
        off, gap = abs(own - value), largest_gap(ours, gradients)
        note = f"loss is {own:.4f}"
        if self.device != self.cpu:
            fast, slopes, _ = self.slopes(stage, "float32", "default")
            loose = f"{abs(fast - value):.2g}, {largest_gap(slopes, gradients):.2g}"
            note += f"; at default precision off by {loose}"
        return Found({"loss": (off, FLOAT32), "gradients": (gap, FLOAT32)}, note)

    def bfloat16(self, stage: str) -> Found:
        """bfloat16 against float32, both on the device."""
        own, ours, attention = self.slopes(stage, "bfloat16", "default")
        value, gradients, _ = self.slopes(stage, "float32")
        gap = 1 - float(np.min([cosine(ours[n], gradients[n]) for n in gradients]))
        values = {"loss": (abs(own - value), LOSS), "1 - cosine": (gap, COSINE)}
        return Found(values, attention)

    def steps(self) -> tuple[Any, list[dict[str, float]]]:
        """The train step in bfloat16 as training compiles it, and what it reports."""
        loss, trained, frozen, batch = self.parts(TRAINED, "bfloat16", remat="full")
        optim = OptimConfig(steps=STEPS, learning_rate=3e-3, schedule="constant")
        schedule = make_schedule(optim, STEPS)
        adam = make_optimizer(optim, schedule)
        step = make_train_step(loss, adam, schedule)
        mesh = make_mesh(devices=[self.device])
        with jax.set_mesh(mesh):
            given = (init_state(trained, adam, jax.random.key(0)), frozen)
            state, *given = jax.device_put(given, named_sharding(mesh))
            given.append(jax.device_put(batch, named_sharding(mesh, "batch")))
            jitted = compile_on_mesh(step, mesh, state)
            program = compiled(jitted, self.device, state, *given)
            reports = []
            for _ in range(STEPS):
                state, metrics = program(state, *given)
                reports.append({name: float(x) for name, x in metrics.items()})
        return program, reports

    def cudnn(self) -> Found:
        """Whether the compiled train step calls cuDNN's attention."""
        if not self.nvidia:
            return Found({}, "no NVIDIA GPU")
        called = attention_of(self.once("train", "train", self.steps)[0])
        return Found({"calls missing": (int("cuDNN" not in called), 0)}, called)

    def train(self) -> Found:
        """Whether a few steps on one batch lower its loss."""
        _, reports = self.once("train", "train", self.steps)
        losses = [report["loss"] for report in reports]
        rises = sum(b >= a for a, b in itertools.pairwise(losses))
        values = {"last loss / first": (losses[-1] / losses[0], 0.9)}
        values["rises"] = (rises, STEPS // 2 - 1)
        values["not finite"] = (sum(not report["finite"] for report in reports), 0)
        return Found(values, f"{TRAINED}, {losses[0]:.3f} to {losses[-1]:.3f}")

    def attention(self, window: int | None) -> Found:
        """cuDNN's attention against XLA's, forwards and backwards."""
        if not self.nvidia:
            return Found({}, "no NVIDIA GPU")
        # Rows of documents of 256 tokens, of odd length; groups of 4 heads.
        shapes = [(2, 275, heads, 128) for heads in (8, 2, 2, 8)]
        normal = np.random.default_rng(0).standard_normal
        drawn = [normal(shape).astype(jnp.bfloat16) for shape in shapes]

        def both(query, key, value, slope):
            def run(attend, **options):
                attend = functools.partial(attend, window=window, **options)
                mixed, backwards = jax.vjp(attend, query, key, value)
                return (mixed, *backwards(slope))

            return run(fused_attention), run(causal_attention, attention="xla")

        ours, xla = jax.jit(both)(*jax.device_put(drawn, self.device))
        pairs = zip(("output", "query", "key", "value"), ours, xla, strict=True)
        gaps = {name: (largest_gap(a, b), ATTENTION) for name, a, b in pairs}
        return Found(gaps, "cuDNN's against XLA's")

    def decode(self, dtype: str) -> Found:
        """Tokens decoded with a cache against one forward pass over all of them."""
        network, new = self.typed(dtype), 16
        prompt = self.parts(TRAINED, dtype)[-1].prompt
        shape = (len(prompt.ids), 1, MEMORY, network.model.config.width)
        vectors = np.random.default_rng(0).standard_normal(shape, np.float32)
        settings = DecodeConfig(max_new_tokens=new, eos_ids=(), pad_id=PAD)

        def decoded(network, prompt, vectors):
            x = network.embed(prompt, vectors)
            variables = network.variables("generator")
            state = prefill(network.model, variables, x, prompt.mask, settings)
            return decode_loop(network.model, variables, state, settings).tokens

        def forced(network, prompt, vectors):
            return network.logits(network.generate_hidden(prompt, vectors))

        def run(function, prompt):
            given = jax.device_put((network, prompt, vectors), self.device)
            with jax.default_matmul_precision({"float32": "highest"}.get(dtype)):
                program = compiled(jax.jit(function), self.device, *given)
            return jax.device_get(program(*given))

        tokens = run(decoded, prompt)
        # Behind each prompt, whose length is its own.
        places = np.asarray(prompt.mask).sum(1)[:, None] + np.arange(new)
        ids = np.pad(prompt.ids, ((0, 0), (0, new)))
        np.put_along_axis(ids, places, tokens, 1)
        mask = np.arange(ids.shape[1])[None] <= places[:, -1:]
        whole = prompt.replace(ids=jnp.asarray(ids), mask=jnp.asarray(mask))
        logits = np.take_along_axis(run(forced, whole), places[..., None] - 1, 1)
        chosen = np.take_along_axis(logits, tokens[..., None], 2)
        behind = logits.max(2) - chosen[..., 0]
        values = {"logits under the best": (float(behind.max()), TIES[dtype])}
        return Found(values, f"{np.sum(behind == 0)} of {tokens.size} tokens the best")

    def search(self, codec: str) -> Found:
        """The exact search against numpy, over the vectors as they are kept."""
        count, width, k = 5_000, 64, 10
        normal = np.random.default_rng(0).standard_normal
        drawn = normal((count, MEMORY, width), np.float32)
        queries = normal((16, MEMORY * width), np.float32)
        settings = made_up.settings_of(MEMORY, width, codec)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "store")
            store = made_up.write(path, settings, count, lambda a, b: drawn[a:b])
            search = ExactSearcher(store, devices=[self.device])
            scores, rows = search(queries, k)
            kept = store.vectors(np.arange(count)).reshape(count, -1).astype(float)
        kept /= np.linalg.norm(kept, axis=1, keepdims=True)
        cosines = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ kept.T
        best = -np.sort(-cosines, axis=1)[:, :k]
        found = np.take_along_axis(cosines, rows, 1)
        worst = float(np.max([abs(scores - found), abs(found - best)]))
        return Found({"cosines": (worst, SCORE)}, f"top {k} of {count:,} rows")


def compiled(function: Any, device: jax.Device, *given: Any) -> Any:
    """The program of a jitted function."""
    return function.lower(*given).compile(FAST if device.platform == "cpu" else None)


def largest_gap(found: Any, wanted: Any) -> float:
    """Largest difference in two trees, each leaf's as a share of its largest entry."""
    pairs = zip(numbers(found), numbers(wanted), strict=True)
    gaps = [abs(a - b).max() / max(abs(b).max(), 1e-30) for a, b in pairs]
    return float(np.max(gaps))


def cosine(found: Any, wanted: Any) -> float:
    """Cosine of two trees, each taken as one vector."""
    a, b = (np.concatenate(numbers(tree)) for tree in (found, wanted))
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def numbers(tree: Any) -> list[np.ndarray]:
    """Each array of a tree, flat and in float64."""
    return [np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)]


def main(arguments: list[str] | None = None) -> int:
    """Run, print and write; 0 if nothing has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="of checks' names")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 16))
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    wanted = (jax.config.jax_platforms or "").split(",")
    if wanted[0] and "cpu" not in wanted:
        jax.config.update("jax_platforms", ",".join([*wanted, "cpu"]))
    try:
        checks = Checks(jax.local_devices(backend=wanted[0] or None)[0])
        if options.json:
            options.json.touch()
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {str(error).splitlines()[0]}")
    table = checks.table()
    words = list(dict.fromkeys(" ".join(table).split()))
    only = set(options.only or words)
    if unknown := only - set(words):
        parser.error(f"--only {' '.join(unknown)}: give some of {', '.join(words)}")
    about = device_facts(checks.device)
    print("; ".join(map(" ".join, about.items())))
    if checks.device == checks.cpu:
        print("no accelerator: the CPU is compared with itself")
    rows = []
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        chosen = [name for name in table if only & set(name.split())]
        results = pool.map(lambda name: timed(table[name]), chosen)
        for name, (found, taken) in zip(chosen, results, strict=True):
            word = found.result()
            print(f"{word:<9}{name:<22}{found.line()}; {taken:.1f} s", flush=True)
            head = {"name": name, "result": word, "seconds": taken}
            rows.append(head | found._asdict())
    failed = [row["name"] for row in rows if row["result"] == "FAILED"]
    seconds = time.perf_counter() - begin
    print(f"{len(rows)} checks, {len(failed)} failed; {seconds:.0f} s in all")
    if options.json:
        report = {"device": about, "checks": rows, "failed": failed, "seconds": seconds}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(failed))


def timed(check: Callable[[], Found]) -> tuple[Found, float]:
    """What a check has found, and its seconds; an exception is a failure."""
    begin = time.perf_counter()
    try:
        found = check()
    except Exception as error:  # whatever it is, the other checks go on
        said = [*str(error).strip().splitlines(), ""][0][:200]
        found = Found({"errors": (1, 0)}, f"{type(error).__name__}: {said}")
    return found, time.perf_counter() - begin


def device_facts(device: jax.Device) -> dict[str, str]:
    """The device, its memory, and versions of all that may matter."""
    memory, found = device_memory(device), importlib.metadata.distributions()
    return {
        "device": device.device_kind,
        "memory": "not told" if memory is None else f"{memory / 1e9:.1f} GB",
        "platform": " ".join(device.client.platform_version.split()),
        **{each.name: each.version for each in found if each.name in VERSIONS},
    }


if __name__ == "__main__":
    sys.exit(main())
