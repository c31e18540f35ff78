"""Vectors, losses, logits, scores and gradients equal the original's."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.clara import (
    Batch,
    Network,
    Tokens,
    candidate_vectors,
    cosine_scores,
    question_scores,
    soft_topk,
)
from clara_jax.clara.losses import answer_terms
from clara_jax.config import SelectionConfig
from clara_jax.convert import load_model
from clara_jax.convert.names import lora_tensors
from clara_jax.convert.tensors import extract
from clara_jax.model import Transformer
from clara_jax.stages import make_loss

CLOSE = 1e-4
GRADIENTS_CLOSE = 1e-3
ADAPTERS = {
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "reasoner",
    "decoder_adapter": "generator",
}
# name: (checkpoint, our stage, file that holds the inputs)
CASES = {
    "stage1_qa": ("stage1", "scp", "stage1_qa"),
    "stage1_paraphrase": ("stage1", "scp", "stage1_paraphrase"),
    "stage1_2_qa": ("stage1_2", "instruct", "stage1_2_qa"),
    "stage2_e2e": ("stage2", "end_to_end", "stage2_e2e"),
    "stage2_retrieval": ("stage2", "rerank", "stage2_e2e"),
    "stage2_retrieval_emptyrow": ("stage2", "rerank", "stage2_e2e"),
}
WITH_GRADIENTS = ("stage1_qa", "stage1_2_qa", "stage2_e2e", "stage2_retrieval")


def difference(ours, theirs):
    """Norm of the difference, relative to theirs."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)


@functools.cache
def read(backbone_dir, name):
    """The arrays and facts of a case; a missing file is a failure, not a skip."""
    arrays, facts = backbone_dir / f"{name}.npz", backbone_dir / f"{name}.json"
    assert arrays.is_file(), f"missing: {arrays}"
    assert facts.is_file(), f"missing: {facts}"
    with np.load(arrays) as file:
        return dict(file), json.loads(facts.read_text(encoding="utf-8"))


@functools.cache
def load(backbone_dir, checkpoint):
    folder = backbone_dir / checkpoint
    assert folder.is_dir(), f"missing: {folder}"
    loaded = load_model(folder, "float32", base=str(backbone_dir / "base"))
    assert loaded.clara is not None
    model = Transformer(loaded.config, loaded.clara.text_vocab, loaded.clara.lora)
    return Network(
        model, jax.device_put(loaded.backbone), jax.device_put(loaded.adapters)
    )


def tokens(ids, mask, rows=None):
    """The original's left-padded rows, its positions included."""
    shape = ids.shape if rows is None else (rows, len(ids) // rows, ids.shape[1])
    return Tokens(
        ids=jnp.asarray(ids).reshape(shape),
        mask=jnp.asarray(mask, bool).reshape(shape),
        positions=jnp.broadcast_to(jnp.arange(ids.shape[1]), shape),
    )


class Case:
    """One file of the oracle, as our batch, loss and parameters."""

    def __init__(self, backbone_dir, name):
        checkpoint, stage, inputs = CASES[name]
        self.arrays, self.facts = read(backbone_dir, name)
        given, _ = read(backbone_dir, inputs)
        self.network = load(backbone_dir, checkpoint)
        rows = len(given["dec_input_ids"])
        self.documents = tokens(given["enc_input_ids"], given["enc_attention_mask"])
        documents = tokens(given["enc_input_ids"], given["enc_attention_mask"], rows)
        batch = Batch(
            prompt=tokens(given["dec_input_ids"], given["dec_attention_mask"]),
            labels=jnp.asarray(given["labels"]),
        )
        selection = SelectionConfig(top_k=int(self.facts.get("generation_top_k", 3)))
        if stage in ("scp", "instruct"):
            batch = batch.replace(documents=documents)
        else:
            question = tokens(given["query_input_ids"], given["query_attention_mask"])
            batch = batch.replace(question=question, candidates=documents)
        if stage == "rerank":
            candidates = np.arange(documents.ids.shape[1])
            gold = self.arrays["pos_index"][:, :, None] == candidates
            batch = batch.replace(positives=jnp.asarray(gold.any(1)))
            selection = SelectionConfig(top_k=self.arrays["topk_idx"].shape[1])
        self.batch, self.selection = batch, selection
        self.loss = make_loss(stage, mse_weight=0.1, selection=selection)

    def trained(self):
        """The adapters whose gradients the file holds."""
        named = {key.split("/")[1] for key in self.arrays if key.startswith("grad/")}
        ours = {ADAPTERS[name] for name in named & set(ADAPTERS)}
        return ours | ({"memory"} if "mem_rows" in named else set())


@functools.cache
def case_of(backbone_dir, name):
    return Case(backbone_dir, name)


@functools.cache
def run(backbone_dir, name):
    """Terms, metrics and gradients of a case, in one compiled program."""
    case = case_of(backbone_dir, name)

    def total(trained):
        network = case.network.with_adapters(trained)
        sums, weights, metrics = case.loss(network, case.batch, None)
        means = {key: sums[key] / weights[key] for key in sums}
        return sum(means.values()), (means, metrics)

    chosen = {key: case.network.adapters[key] for key in case.trained()}
    (loss, rest), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(chosen)
    return loss, *rest, slope


@pytest.mark.parametrize("name", CASES)
def test_losses(backbone_dir, name):
    arrays = case_of(backbone_dir, name).arrays
    loss, means, metrics, _ = run(backbone_dir, name)
    main = means["rerank" if "retrieval" in name else "answer"]
    assert difference(main, arrays["loss"]) < CLOSE
    if "total_loss" in arrays:
        assert difference(loss, arrays["total_loss"]) < CLOSE
    if "mse" in metrics:
        total, count = metrics["mse"]
        assert difference(total / count, arrays["mse_loss"]) < CLOSE


@pytest.mark.parametrize("name", CASES)
def test_compressed_vectors_and_mse(backbone_dir, name):
    case = case_of(backbone_dir, name)
    if "compressed" not in case.arrays:
        assert name == "stage2_retrieval_emptyrow", f"missing: compressed in {name}"
        return
    encoding = case.network.compress(case.documents)
    assert difference(encoding.memory, case.arrays["compressed"]) < CLOSE
    mse = jnp.mean(jnp.square(encoding.memory_mean - encoding.text_mean))
    assert difference(mse, case.arrays["mse_loss"]) < CLOSE


@pytest.mark.parametrize("name", [n for n in CASES if "retrieval" not in n])
def test_logits(backbone_dir, name):
    case = case_of(backbone_dir, name)
    arrays, batch = case.arrays, case.batch
    if name == "stage2_e2e":
        vectors = candidate_vectors(case.network, batch)
        selected = jnp.take_along_axis(
            vectors, jnp.asarray(arrays["topk_idx"])[:, :, None, None], axis=1
        )
    else:
        memory = case.network.compress(case.documents).memory
        selected = memory.reshape(len(batch.labels), -1, *memory.shape[1:])
    hidden = case.network.generate_hidden(batch.prompt, selected)
    rows, columns = arrays["logits_rows_index"].T
    logits = case.network.logits(hidden[rows, columns])
    assert difference(logits, arrays["logits_rows"]) < CLOSE


@pytest.mark.parametrize("name", ["stage2_e2e", "stage2_retrieval"])
def test_query_vectors(backbone_dir, name):
    case = case_of(backbone_dir, name)
    queries = case.network.reason(case.batch.question)
    assert difference(queries, case.arrays["query_reps"]) < CLOSE


def test_scores_and_selection(backbone_dir):
    case = case_of(backbone_dir, "stage2_e2e")
    arrays, choice = case.arrays, case.selection
    vectors = candidate_vectors(case.network, case.batch)
    scores = question_scores(case.network, case.batch, vectors)
    assert difference(scores, arrays["scores"]) < CLOSE
    weights, indices = soft_topk(scores, choice.top_k, choice.temperature)
    np.testing.assert_array_equal(indices, arrays["topk_idx"])
    assert difference(weights, arrays["topk_weights"]) < CLOSE


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("stage2_retr")])
def test_retrieval_choices(backbone_dir, name):
    case = case_of(backbone_dir, name)
    vectors = candidate_vectors(case.network, case.batch)
    scores = question_scores(case.network, case.batch, vectors)
    _, indices = jax.lax.top_k(scores, case.selection.top_k)
    np.testing.assert_array_equal(indices, case.arrays["topk_idx"])


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(backbone_dir, name):
    case = case_of(backbone_dir, name)
    slope = run(backbone_dir, name)[3]
    model = case.network.model
    assert case.trained(), f"missing: gradients in {name}"
    stored = {
        role: {t.name: t for t in lora_tensors(model.config, model.lora)}
        for role in ADAPTERS.values()
    }
    compared = 0
    for key, theirs in case.arrays.items():
        parts = key.split("/", 2)
        if parts[0] != "grad":
            continue
        if parts[1] == "mem_rows":
            ours = slope["memory"]
        elif parts[1] in ADAPTERS:
            role = ADAPTERS[parts[1]]
            ours = extract(slope[role], stored[role].pop(parts[2]))
        else:
            continue
        assert difference(ours, theirs) < GRADIENTS_CLOSE, key
        compared += 1
    assert compared > 10
    if name == "stage1_qa":
        assert "grad/mem_rows" in case.arrays, "missing: grad/mem_rows in stage1_qa"
    for role in case.trained() - {"memory"}:
        assert not stored[role], f"missing: gradients of {role} in {name}"


def answer_loss(case, vectors):
    """Mean cross-entropy of the labels as a function of the slots' vectors."""
    hidden = case.network.generate_hidden(case.batch.prompt, vectors)
    sums, weights, _ = answer_terms(case.network, hidden, case.batch.labels)
    return sums["answer"] / weights["answer"]


@pytest.mark.parametrize("name", ["stage1_qa", "stage1_2_qa"])
def test_gradients_of_compressed_vectors(backbone_dir, name):
    case = case_of(backbone_dir, name)
    assert "grad/compressed" in case.arrays, f"missing: grad/compressed in {name}"
    memory = jnp.asarray(case.arrays["compressed"])
    rows = len(case.batch.labels)

    def loss(memory):
        return answer_loss(case, memory.reshape(rows, -1, *memory.shape[1:]))

    slope = jax.jit(jax.grad(loss))(memory)
    assert difference(slope, case.arrays["grad/compressed"]) < GRADIENTS_CLOSE


def test_gradients_of_scores_and_queries(backbone_dir):
    case = case_of(backbone_dir, "stage2_e2e")
    arrays, choice = case.arrays, case.selection
    vectors = candidate_vectors(case.network, case.batch)
    flat = vectors.reshape(*vectors.shape[:2], -1)

    def loss_of_scores(scores):
        weights, _ = soft_topk(scores, choice.top_k, choice.temperature)
        return answer_loss(case, jnp.einsum("bjc,bcmd->bjmd", weights, vectors))

    queries = jnp.asarray(arrays["query_reps"])
    scores, pull = jax.vjp(lambda q: cosine_scores(q, flat), queries)
    by_scores = jax.jit(jax.grad(loss_of_scores))(scores)
    assert difference(by_scores, arrays["grad/scores"]) < GRADIENTS_CLOSE
    assert difference(pull(by_scores)[0], arrays["grad/query_reps"]) < GRADIENTS_CLOSE


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("stage2_retr")])
def test_gradients_of_queries_for_reranking(backbone_dir, name):
    case = case_of(backbone_dir, name)
    vectors = candidate_vectors(case.network, case.batch)
    flat = vectors.reshape(*vectors.shape[:2], -1)
    positives = case.batch.positives

    def loss(queries):
        logits = cosine_scores(queries, flat) / case.selection.temperature
        counted = positives.any(-1)
        gold = jnp.where(positives | ~counted[:, None], logits, -1e30)
        share = jax.nn.logsumexp(logits, -1) - jax.nn.logsumexp(gold, -1)
        return jnp.sum(share * counted) / jnp.sum(counted)

    slope = jax.grad(loss)(jnp.asarray(case.arrays["query_reps"]))
    assert difference(slope, case.arrays["grad/query_reps"]) < GRADIENTS_CLOSE
