"""cuDNN's attention without a GPU: what is lowered, what is chosen, what it computes.

`dot_product_attention` means the same in both of JAX's implementations, so that XLA's
stands in for cuDNN's where numbers are compared.
"""

import dataclasses
import functools
import logging
import re
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import DataConfig, MemoryConfig, OptimConfig, RunConfig
from clara_jax.errors import ClaraError
from clara_jax.model import PRESETS, Transformer
from clara_jax.model import attention as fused
from clara_jax.model.attention import causal_attention
from clara_jax.sharding import make_mesh
from clara_jax.testing import toy_network
from clara_jax.train.abstract_run import abstract_run
from clara_jax.train.step import compile_on_mesh

CUDNN = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


@pytest.fixture(autouse=True)
def _forget():
    yield
    fused._refusal.cache_clear()
    fused._warn.cache_clear()


@pytest.fixture
def traced_anew():
    """Traces that know a pretended device do not go to other tests, nor theirs here."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def on_cuda(monkeypatch, traced_anew):
    """As on a machine with an NVIDIA GPU on which cuDNN refuses nothing."""
    monkeypatch.setattr(fused, "_on_nvidia", lambda: True)
    monkeypatch.setattr(fused, "_refusal", lambda *_: None)
    monkeypatch.setattr(CUDNN, lambda: 91000)


@pytest.fixture
def xla_as_cudnn(monkeypatch):
    plain = jax.nn.dot_product_attention

    def stand_in(*args, implementation=None, **options):
        return plain(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def _rows(length, dtype=jnp.bfloat16, rows=2, head=8):
    keys = jax.random.split(jax.random.key(length), 3)
    return [
        jax.random.normal(key, (rows, length, heads, head)).astype(dtype)
        for key, heads in zip(keys, (4, 2, 2), strict=True)
    ]


@pytest.mark.parametrize(
    ("length", "window", "scale"),
    [
        (33, None, None),
        (33, None, 0.9),
        pytest.param(275, 50, None, marks=pytest.mark.slow),
        (64, 1, None),
    ],
)
def test_the_same_numbers_as_in_blocks(length, window, scale, xla_as_cudnn):
    rows = _rows(length, jnp.float32)
    weights = jnp.cos(jnp.arange(rows[0].size)).reshape(rows[0].shape)
    slopes, found = {}, {}
    for run in (causal_attention, fused.fused_attention):
        shown = functools.partial(run, window=window, scale=scale)
        found[run] = jax.jit(shown)(*rows)
        total = jax.grad(lambda *x, f=shown: jnp.sum(f(*x) * weights), (0, 1, 2))
        slopes[run] = jax.jit(total)(*rows)
    np.testing.assert_allclose(*found.values(), atol=2e-6)
    for one, other in zip(*slopes.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_padding_on_the_right_stays_finite_and_changes_nothing(on_cuda, xla_as_cudnn):
    toy = toy_network(head_dim=8, dtype="bfloat16")
    variables = {"params": toy.backbone["params"], "lora": toy.adapters["generator"]}
    bare = jax.random.normal(jax.random.key(0), (2, 9, 16), jnp.bfloat16)

    @jax.jit
    def states(x):
        return toy.model.apply(variables, x, method="hidden")[0].astype(jnp.float32)

    padded = jnp.pad(bare, ((0, 0), (0, 4), (0, 0)))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(states(x)[:, :9])))(padded)
    assert jnp.all(jnp.isfinite(states(padded))) and jnp.all(jnp.isfinite(slope))
    assert not jnp.any(slope[:, 9:])
    np.testing.assert_allclose(states(padded)[:, :9], states(bare), atol=0.05)


def _run(stage, **changes):
    config = RunConfig(
        stage=stage,
        workdir="unused",
        backbone="random:tiny",
        dtype="bfloat16",
        remat="full",
        memory=MemoryConfig(doc_max_length=256, compression_rate=16),
        data=DataConfig(batch_size=8, prompt_max_length=384, candidates=6),
        optim=OptimConfig(steps=10),
    )
    shape = dataclasses.replace(PRESETS["tiny"], **changes)
    return abstract_run(config, shape, 128)


def _masks(text):
    """Boolean arrays that are as long as a row along two axes."""
    return re.findall(r"tensor<(?:\d+x)*(?:275x27[56]|276x276|384x384)xi1>", text)


@pytest.mark.parametrize("stage", ["scp", "instruct", "end_to_end", "rerank"])
@pytest.mark.parametrize("window", [None, 64])
def test_train_steps_call_cudnn_forwards_and_backwards(stage, window, on_cuda):
    run = _run(stage, sliding_window=window)
    lowered = (
        jax.jit(run.step).trace(*run.arguments).lower(lowering_platforms=("cuda",))
    )
    text = lowered.as_text()
    calls = re.findall(r"__cudnn\$\w+", text)
    trained = 1 if stage == "rerank" else 2
    # Each trained role reads forwards, again for the backward pass, and backwards;
    # frozen candidates are read once.
    frozen = {"end_to_end": 1, "rerank": 1}.get(stage, 0)
    assert calls.count(FORWARD) == 2 * trained + frozen
    assert calls.count(BACKWARD) == trained
    assert set(calls) == {FORWARD, BACKWARD} and not _masks(text)
    text = text.replace("\\22", '"')
    kinds = re.findall(r'"mask_type": "(\w+)"', text)
    windows = re.findall(r'"sliding_window_length": (\d+)', text)
    assert kinds == ["CAUSAL"] * len(calls)
    assert windows == [str(window or 0)] * len(calls)


def test_without_cudnn_there_are_masks():
    run = _run("scp")
    text = jax.jit(run.step).lower(*run.arguments).as_text()
    assert "__cudnn" not in text and "x128x384xi1>" in text


def test_a_mesh_keeps_the_calls(on_cuda):
    run = _run("scp")
    mesh = make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arguments without a place: no donation
        traced = compile_on_mesh(run.step, mesh, run.state).trace(*run.arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # Which become cuDNN's calls once XLA has split them.
    assert text.count("@CustomSPMDPartitioning") == 6
    assert not _masks(text)


@pytest.mark.parametrize("attention", ["auto", "xla"])
def test_other_devices_take_xla_silently(attention, caplog):
    with caplog.at_level(logging.WARNING):
        assert not fused.takes_fused(*_rows(8)[:2], None, attention)
    assert not caplog.records


def test_devices_named_count_more_than_the_default(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [gpu])
    assert fused._on_nvidia()
    with jax.set_mesh(make_mesh()):
        assert not fused._on_nvidia()
    with jax.default_device(jax.devices()[0]):
        assert not fused._on_nvidia()
    gpu.device_kind = "AMD Instinct MI300X"
    assert not fused._on_nvidia()


def test_a_refusal_is_one_warning_and_the_slower_path(monkeypatch, caplog, traced_anew):
    monkeypatch.setattr(fused, "_on_nvidia", lambda: True)
    rows = _rows(20)
    with caplog.at_level(logging.WARNING):
        found = jax.jit(causal_attention)(*rows)
        causal_attention(*_rows(21))
    (record,) = caplog.records
    message = record.getMessage()
    assert "attention is XLA's" in message and "\n" not in message
    wanted = causal_attention(*rows, attention="xla")
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (_rows(8, jnp.float32), "needs bfloat16 or float16, not float32"),
        (_rows(8, head=12), "a multiple of 8 up to 128, not 12"),
        (_rows(8, head=136), "a multiple of 8 up to 128, not 136"),
        (_rows(8), "cuDNN is not detected"),
    ],
    ids=["type", "odd_head", "wide_head", "absent"],
)
def test_insisting_on_cudnn_fails_in_one_line(rows, says):
    with pytest.raises(ClaraError, match=says) as failure:
        causal_attention(*rows, attention="cudnn")
    assert "\n" not in str(failure.value)


def test_the_model_hands_its_choice_on():
    toy = toy_network()
    ids = jnp.ones((1, 4), jnp.int32)
    variables = {"params": toy.backbone["params"]}
    for attention, says in (("cudnn", "cannot be had"), ("fast", "must be one of")):
        model = Transformer(toy.model.config, 61, attention=attention)
        with pytest.raises(ClaraError, match=says):
            model.apply(variables, ids)


def test_the_trial_is_compiled_apart_from_traces_and_meshes(
    monkeypatch, xla_as_cudnn, traced_anew
):
    monkeypatch.setattr(fused, "_on_nvidia", lambda: True)
    monkeypatch.setattr(fused, "_local_gpu", lambda: jax.devices()[0])
    rows = _rows(20, rows=8)
    with jax.set_mesh(make_mesh()):
        found = jax.jit(causal_attention)(*rows)
    assert fused._refusal.cache_info().currsize == 1
    assert fused._refusal(20, 4, 2, 8, "bfloat16", None) is None
    wanted = causal_attention(*rows, attention="xla")
    near = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
    np.testing.assert_allclose(*near, atol=0.03)
