"""The planner compiles what training runs; its figures are exact where they can be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import MeshConfig
from clara_jax.errors import ClaraError
from clara_jax.plan.advice import advice
from clara_jax.plan.cases import Case, backbone_shape, settle
from clara_jax.plan.programs import (
    _refusal,
    arrays,
    kept,
    key,
    measure,
    measure_apart,
    run_of,
    show,
)
from clara_jax.plan.summary import (
    floor_of,
    markdown,
    memory_of,
    report,
    summary,
)
from clara_jax.plan.topology import CHIPS, parse_topology
from clara_jax.sharding import make_mesh, named_sharding
from clara_jax.train.experiments import read_experiment
from clara_jax.train.runner import assemble, first_state

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def tiny(repository, stage, topology="cpu:8", mesh=MESH, work="train", rows=0):
    path = repository / "configs" / "tiny.py"
    config = read_experiment([f"--config={path}:{stage}"]).runs[0]
    # Training on random weights, as the first stage would have left them.
    config = dataclasses.replace(
        config,
        backbone="random:tiny",
        init_from="",
        tokenizer=str(repository / "tests" / "train" / "tiny" / "tokenizer"),
        mesh=mesh,
        reinit=("compressor", "generator", "memory", "reasoner"),
    )
    config, _ = settle(config, int(topology.split(":")[1]))
    shape, vocab, _ = backbone_shape(config, "")
    return Case(work, config, shape, vocab, parse_topology(topology), rows)


@pytest.mark.parametrize(
    "stage", [pytest.param("scp", marks=pytest.mark.slow), "end_to_end"]
)
def test_the_program_is_the_one_that_training_runs(repository, stage, tmp_path):
    case = tiny(repository, stage)
    config = dataclasses.replace(case.config, workdir=str(tmp_path))
    run = run_of(dataclasses.replace(case, config=config))
    parts = assemble(config)
    state, step = first_state(parts)
    # Both planned and made: the longest batch there can be.
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.batch)
    batch = jax.device_put(batch, named_sharding(parts.mesh, "batch"))
    with jax.set_mesh(parts.mesh):
        trained = step.lower(state, parts.network, batch).as_text()
    assert trained == run.lower(make_mesh(**case.sizes)).as_text()
    placed = run.on(parts.mesh)
    mine = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), placed.arguments)
    theirs = jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding),
        (state, parts.network, batch),
    )
    assert mine == theirs


@pytest.mark.slow
def test_batches_have_the_planned_form(repository, tmp_path):
    for stage in ("scp", "end_to_end"):
        case = tiny(repository, stage)
        planned = run_of(case).batch
        parts = assemble(
            dataclasses.replace(
                case.config,
                data=dataclasses.replace(case.config.data, eval=case.config.data.train),
            )
        )
        real = next(iter(parts.batches()))
        assert jax.tree.structure(real) == jax.tree.structure(planned)
        kinds = [leaf.dtype for leaf in jax.tree.leaves(planned)]
        assert [leaf.dtype for leaf in jax.tree.leaves(real)] == kinds


@pytest.fixture(scope="module")
def result(repository, tmp_path_factory):
    case = tiny(repository, "scp")
    folder = tmp_path_factory.mktemp("cache")
    return case, folder, measure(case, folder)


def test_arguments_are_exact(result):
    case, _, found = result
    (program,) = found["programs"]
    by_hand = 0
    for leaf in jax.tree.leaves(run_of(case).on(make_mesh(**case.sizes)).arguments):
        numbers = leaf.size
        for entry in leaf.sharding.spec:
            names = (entry,) if isinstance(entry, str) else entry or ()
            for name in names:
                numbers //= case.sizes[name]
        by_hand += numbers * leaf.dtype.itemsize
    # A step of scp reads everything, so the compiler counts the same.
    assert program["memory"]["arguments"] == by_hand == program["memory"]["placed"]
    assert sum(v for k, v in found["arguments"].items() if "cache" not in k) == by_hand
    assert memory_of(found)["arguments"] == by_hand


def test_temporaries_are_of_the_right_order(result):
    case, _, found = result
    (program,) = found["programs"]
    rows, length = case.config.data.batch_size // 4, 192
    logits = rows * 64 * case.text_vocab * 4
    # Less than all activations kept twice in float32, more than one block of logits.
    widths = 12 * case.shape.width + 4 * case.shape.mlp_dim
    kept = 2 * 4 * rows * length * (case.shape.num_layers + 1) * widths
    scores = 2 * 4 * rows * 4 * length * length * (case.shape.num_layers + 1)
    assert logits / 4 < program["memory"]["temporaries"] < 8 * (kept + scores + logits)


def test_results_are_kept(result, tmp_path):
    case, folder, found = result
    again = kept(case, folder)
    assert again is not None and kept(case, tmp_path) is None
    assert again.pop("cached") and not found["cached"]
    assert again == {k: v for k, v in found.items() if k != "cached"}
    other = dataclasses.replace(
        case, config=dataclasses.replace(case.config, remat="full")
    )
    elsewhere = dataclasses.replace(
        case, config=dataclasses.replace(case.config, workdir="b", seed=5)
    )
    assert key(other) != key(case) == key(elsewhere)


def test_a_report_has_every_part(result):
    _, _, found = result
    text = report(found, ["a remark"])
    for words in (
        "mesh data 2, fsdp 2, tensor 2",
        "note: a remark",
        "exact: backbone (frozen)",
        "operations, useful",
        "each loop's body once: not used",
        "all-reduce",
        "no estimate of time",
    ):
        assert words in text
    assert summary(found)["fits"] is None
    table = markdown(found).splitlines()
    assert len(table) == 3 and len({len(line) for line in table}) == 1
    cells = [cell.strip() for cell in table[2].split("|")]
    assert cells[1:4] == ["scp, cpu:8", "data=2,fsdp=2,tensor=2", "1"]


def test_a_gpu_is_planned_with_a_warning_on_its_label(result):
    _, _, found = result
    gpu = {**found, "topology": "h100:8"}
    text = report(gpu)
    assert "NOT for this GPU" in text and "fits" in text and "ESTIMATE" in text
    assert "a floor: at least" in text and "a real run takes longer" in text
    floor = floor_of(gpu, gpu["programs"][0])
    parts = [floor[f"seconds_{x}"] for x in ("compute", "memory", "links", "network")]
    assert 0 < floor["seconds_best"] == max(parts) == floor[f"seconds_{floor['bound']}"]
    line = summary(gpu)
    assert line["fits"] is True and 0 < line["mfu_best"] < 1


REFUSALS = {
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
    "space hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity by 2.75G.": 18.5,
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (512.00G) exceeds available HBM (15.75G).": 512.0,
}


@pytest.mark.parametrize("message", REFUSALS)
def test_a_compiler_that_refuses_is_a_result(result, message):
    _, _, found = result
    program = {**found["programs"][0], "refused": _refusal(message)}
    refused = {**found, "topology": "v5e:2x4", "programs": [program]}
    memory = memory_of(refused)
    assert memory["fits"] is False and memory["limit"] == 15.75 * 2**30
    assert memory["peak"] == pytest.approx(REFUSALS[message] * 2**30, rel=1e-3)
    text = report(refused)
    assert "DOES NOT FIT" in text and "refused: RESOURCE" in text
    assert advice(refused)
    assert "no" in markdown(refused)


def test_arguments_too_large_for_the_chip_need_no_compiler(
    repository, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        "clara_jax.plan.programs.programs", lambda case: pytest.fail("compiled")
    )
    path = repository / "configs" / "mistral_7b_scp.py"
    config = read_experiment([f"--config={path}"]).runs[0]
    config, _ = settle(dataclasses.replace(config, mesh=MeshConfig(data=1)), 1)
    shape, vocab, _ = backbone_shape(config, "")
    case = Case("train", config, shape, vocab, parse_topology("h100:1"))
    small = dataclasses.replace(parse_topology("h100:1").chip, memory=12.0 * 2**30)
    monkeypatch.setitem(CHIPS, "h100", small)
    found = measure(case, tmp_path)
    text = report(found)
    gib = sum(v for k, v in found["arguments"].items() if "cache" not in k) / 2**30
    assert gib > 14 and f"the arguments alone need {gib:.2f} GiB" in text
    assert "DOES NOT FIT" in text
    assert summary(found)["fits"] is False


def test_other_failures_of_a_compiler_are_told_in_a_line(
    repository, monkeypatch, tmp_path
):
    class Broken:
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: no\nmore")

    case = tiny(repository, "scp")
    monkeypatch.setattr(
        "clara_jax.train.abstract_run.AbstractRun.lower", lambda run, mesh: Broken()
    )
    with pytest.raises(ClaraError, match="compiler fails on train step: INTERNAL: no$"):
        measure(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["compress", "decode"])
def test_compression_and_decoding_are_planned(repository, work, tmp_path):
    case = tiny(repository, "end_to_end", work=work, rows=8)
    found = measure(case, tmp_path)
    text = report(found, documents=1000)
    if work == "compress":
        # Two vectors of 32 numbers in float32 each.
        assert found["vector_bytes"] == 2 * 32 * 4
        assert "a corpus of 1,000 documents: 250.0 KiB of vectors" in text
    else:
        names = [program["name"] for program in found["programs"]]
        assert names == ["read the prompts", "one token more"]
        assert "cache of keys and values" in text
    with pytest.raises(ClaraError, match="--rows 7: 4 devices cannot share"):
        measure(dataclasses.replace(case, rows=7), tmp_path)


def test_the_cache_of_decoding_is_counted(repository):
    case = tiny(repository, "end_to_end", rows=8)
    cache = arrays(case)["cache of decoding, 8 rows"]
    slots = case.config.data.prompt_max_length + case.config.hooks.max_new_tokens
    assert cache.key.shape == (2, 8, slots, 2, 8)
    assert cache.key.sharding.shard_shape(cache.key.shape) == (2, 2, slots, 1, 8)
    *_, row = [x for x in show(case).splitlines() if x.startswith("  key  ")]
    size = 2 * 8 * slots * 2 * 8 * 4
    assert row.split()[3:6] == ["-,data+fsdp,-,tensor,-", f"{size:,}", f"{size // 8:,}"]
    assert cache.positions.dtype == jnp.int32


@pytest.mark.slow
def test_a_process_of_its_own_says_what_went_wrong(repository, tmp_path, monkeypatch):
    case = tiny(repository, "scp")
    large = dataclasses.replace(case, topology=parse_topology("cpu:64"))
    with pytest.raises(ClaraError, match="simulates 8 devices only"):
        measure_apart(large, tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "nothing")
    with pytest.raises(ClaraError, match="the compiler ended with status 1"):
        measure_apart(case, tmp_path)
