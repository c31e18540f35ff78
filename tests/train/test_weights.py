"""What each stage starts from: new, kept, copied, refused."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import LoraConfig, MemoryConfig, RunConfig, SelectionConfig
from clara_jax.convert import (
    ClaraSettings,
    ModelFolder,
    load_model,
    write_model_folder,
)
from clara_jax.errors import ClaraError
from clara_jax.model import logical_axes
from clara_jax.sharding import make_mesh, tree_shardings
from clara_jax.stages import STAGES
from clara_jax.testing import toy_network, toy_tokenizer
from clara_jax.train.experiments import read_experiment
from clara_jax.train.weights import load_start, make_adapters

LORA = LoraConfig(rank=4, alpha=8.0)
MEMORY = MemoryConfig(doc_max_length=8, compression_rate=4)


@pytest.fixture(scope="module")
def toy():
    return toy_network()


def config(stage, **changes):
    fields = {"backbone": "b", "init_from": "earlier", "lora": LORA, "memory": MEMORY}
    return RunConfig(stage=stage, workdir="w", **{**fields, **changes})


def earlier(toy, without=(), **changes):
    adapters = {k: v for k, v in toy.adapters.items() if k not in without}
    settings = ClaraSettings(MEMORY, LORA, SelectionConfig(), toy.model.text_vocab)
    settings = dataclasses.replace(settings, **changes)
    return ModelFolder(
        toy.model.config,
        toy.backbone["params"],
        None,
        settings,
        adapters,
        toy.backbone["rows"],
    )


def make(toy, run, folder):
    params = toy.backbone["params"]
    return make_adapters(run, toy.model, params, folder, jax.random.key(5))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def is_new(lora):
    leaves = jax.tree_util.tree_flatten_with_path(lora)[0]
    return all(not np.any(x) for path, x in leaves if path[-1].key == "b")


def test_tokens_without_embeddings_are_refused_but_for_images(tmp_path):
    tokenizer = toy_tokenizer()
    rows = len(tokenizer)
    toy = toy_network(text_vocab=rows)

    def start(token):
        longer, folder = copy.deepcopy(tokenizer), tmp_path / token[2:-1]
        longer.add_special_tokens({"additional_special_tokens": [token]})
        params = toy.backbone["params"]
        model = ModelFolder(toy.model.config, params, longer, eos_ids=(2,))
        write_model_folder(folder, model)
        run = config("scp", backbone=str(folder), init_from="")
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def placement(tree):
            return jax.tree.map(lambda _: one, tree)

        return load_start(run, jax.random.key(0), placement)

    assert start("<image_soft_token>").network.model.text_vocab == rows + 1
    with pytest.raises(ClaraError, match=f"only {rows} embedding rows"):
        start("<|im_start|>")


def test_scp_starts_everything_afresh(toy):
    adapters, rows = make(toy, config("scp"), earlier(toy, without=["reasoner"]))
    assert set(adapters) == {"compressor", "generator", "memory"}
    assert is_new(adapters["compressor"]) and is_new(adapters["generator"])
    assert not same(adapters["compressor"], adapters["generator"])
    assert not same(adapters["memory"], toy.adapters["memory"])
    assert not same(rows["marks"], toy.backbone["rows"]["marks"])
    assert rows["head"].shape == (5, 16) and rows["marks"].shape == (3, 16)


def test_new_rows_resemble_the_text_rows(toy):
    params = dict(toy.backbone["params"])
    spread = jnp.arange(1.0, 17.0)[None, :]
    table = 3.0 + jax.random.normal(jax.random.key(1), (61, 16)) * spread
    params["embed"] = {"embedding": jnp.concatenate([table, jnp.full((40, 16), 1e6)])}
    run = config("scp", memory=MemoryConfig(doc_max_length=4096, compression_rate=2))
    adapters, _ = make_adapters(run, toy.model, params, None, jax.random.key(0))
    memory = np.asarray(adapters["memory"])
    np.testing.assert_allclose(memory.mean(0), table.mean(0), atol=2.0)
    np.testing.assert_allclose(memory.std(0), table.std(0), rtol=0.1)


def test_instruct_keeps_the_compressor_and_starts_a_new_generator(toy):
    adapters, rows = make(toy, config("instruct"), earlier(toy))
    for name in ("compressor", "memory"):
        assert same(adapters[name], toy.adapters[name])
    # It would no longer fit the compressor that is trained further here.
    assert "reasoner" not in adapters
    assert is_new(adapters["generator"])
    assert same(rows, toy.backbone["rows"])


@pytest.mark.parametrize("stage", ["end_to_end", "rerank"])
def test_the_reasoner_starts_as_a_copy_of_the_compressor(toy, stage):
    adapters, _ = make(toy, config(stage), earlier(toy, without=["reasoner"]))
    assert same(adapters["reasoner"], toy.adapters["compressor"])
    assert same(adapters["generator"], toy.adapters["generator"])
    adapters, _ = make(toy, config(stage), earlier(toy))
    assert same(adapters["reasoner"], toy.adapters["reasoner"])


def test_reinit_starts_what_it_names(toy):
    run = config("end_to_end", reinit=("reasoner", "generator"))
    adapters, _ = make(toy, run, earlier(toy))
    assert is_new(adapters["reasoner"]) and is_new(adapters["generator"])
    assert same(adapters["compressor"], toy.adapters["compressor"])


def test_rerank_needs_no_generator(toy):
    folder = earlier(toy, without=["reasoner", "generator"])
    adapters, _ = make(toy, config("rerank"), folder)
    assert set(adapters) == {"compressor", "memory", "reasoner"}


@pytest.mark.parametrize(
    ("stage", "without", "message"),
    [
        ("instruct", ["compressor"], "needs? .*compressor|trained compressor"),
        ("end_to_end", ["generator"], "trained generator.*--config.reinit=generator"),
        ("rerank", ["memory"], "trained memory"),
    ],
)
def test_what_is_missing_is_named(toy, stage, without, message):
    with pytest.raises(ClaraError, match=message):
        make(toy, config(stage), earlier(toy, without=without))


@pytest.mark.parametrize(
    ("stage", "names"),
    [("instruct", "compressor,memory"), ("end_to_end", "compressor,generator,memory")],
)
def test_all_that_is_missing_is_named_at_once(toy, stage, names):
    with pytest.raises(ClaraError, match=f"--config.reinit={names} to start anew"):
        make(toy, config(stage, init_from=""), None)
    made = read_experiment(
        ["--config=configs/tiny.py:" + stage, f"--config.reinit={names}"]
    )
    adapters, _ = make(toy, config(stage, reinit=made.runs[0].reinit), None)
    assert {*names.split(",")} <= {*adapters}


def test_a_bare_base_is_no_start_for_later_stages(toy):
    with pytest.raises(ClaraError, match="init_from' is empty"):
        make(toy, config("instruct", init_from=""), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig(rank=8, alpha=8.0)}, r"'lora.rank' is 8.*lora.rank=4"),
        ({"memory": MemoryConfig(16, 4)}, "compression_rate.*get 4 .*has 2; set"),
        ({"memory": MemoryConfig(8, 4, False)}, "'memory.separator' is False"),
    ],
)
def test_settings_that_differ_from_the_adapters_are_named(toy, changes, message):
    with pytest.raises(ClaraError, match=message):
        make(toy, config("instruct", **changes), earlier(toy))


def test_adapters_of_another_backbone_are_refused(toy):
    other = earlier(toy_network(width=24))
    with pytest.raises(ClaraError, match="does not fit the backbone"):
        make(toy, config("instruct"), other)


def test_a_quantized_backbone_is_written_with_adapters_that_know_it(tmp_path, capsys):
    toy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    run = RunConfig(
        stage="scp",
        workdir=str(tmp_path / "run"),
        backbone="random:tiny",
        tokenizer=str(tmp_path / "tokenizer"),
        quantize="nf4",
        memory=MEMORY,
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    start = load_start(
        run, jax.random.key(0), lambda tree: tree_shardings(mesh, tree, logical_axes)
    )
    write_model_folder(tmp_path / "run", start.folder(run, start.trainable))
    load_model(tmp_path / "run")
    assert capsys.readouterr().err == ""


def test_what_each_stage_trains():
    def trained(stage, **changes):
        return STAGES[stage].trained(config(stage, **changes))

    assert trained("scp") == ("compressor", "generator", "memory")
    assert trained("end_to_end") == ("reasoner", "generator")
    assert trained("end_to_end", train_generator=False) == ("reasoner",)
