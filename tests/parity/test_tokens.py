"""Token ids, labels and prompts equal the original's, bit for bit."""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_stages import example_maker, layout_of

from clara_jax.clara.batches import IGNORE, Tokens
from clara_jax.config import DataConfig, MemoryConfig
from clara_jax.data import Example
from clara_jax.data.collating import collate
from clara_jax.data.records import read_clara
from clara_jax.text import (
    ClaraTokenizer,
    answer_prompt,
    paraphrase_prompt,
    readable,
)

STAGES = {
    "stage1_qa": "scp",
    "stage1_paraphrase": "scp",
    "stage1_2_qa": "instruct",
    "stage2_e2e": "end_to_end",
}
GENERATIONS = (
    "paraphrase",
    "paraphrase_k2",
    "text",
    "compressed",
    "text_early_stop",
    "questions",
)


class PythonRandom(np.random.Generator):
    """The original draws instructions with ``random.choice``."""

    def __init__(self, seed: int | None):
        super().__init__(np.random.PCG64())
        self.source = random.Random(seed)

    def integers(self, low, /):
        return self.source.choice(range(low))


def present(path: Path) -> Path:
    if not path.exists():
        pytest.fail(f"missing: {path.parent.name}/{path.name}")
    return path


def read_json(path: Path) -> Any:
    return json.loads(present(path).read_text(encoding="utf-8"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(present(path)) as file:
        return {name: file[name] for name in file.files}


def left_padded(tokens: Any, width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Our right-padded rows, any leading axes, as the original pads them."""
    ids = np.asarray(tokens.ids).reshape(-1, tokens.ids.shape[-1])
    masks = np.asarray(tokens.mask).reshape(ids.shape)
    rows = np.full((len(ids), width), fill, np.int32)
    for i, mask in enumerate(masks):
        count = int(mask.sum())
        assert mask[:count].all(), "not right-padded"
        rows[i, width - count :] = ids[i, :count]
    lengths = masks.sum(-1)
    return rows, np.arange(width)[None, :] >= width - lengths[:, None]


class Case:
    """One stage's file, and our examples of it."""

    def __init__(self, folder: Path, name: str):
        self.meta = read_json(folder / "meta.json")
        self.facts = read_json(folder / f"{name}.json")
        self.arrays = read_arrays(folder / f"{name}.npz")
        self.stage = STAGES[name]
        self.tokenizer = base_tokenizer(folder)
        memory = memory_config(self.meta)
        data = DataConfig(
            prompt_max_length=self.facts["dec_max_len"],
            question_max_length=self.facts["dec_max_len"],
            too_long="cut",
        )
        assert self.facts["enc_max_len"] == memory.doc_max_length
        settings = {"top_k": self.facts["generation_top_k"]}
        self.maker = example_maker(self.tokenizer, self.stage, memory, data, **settings)
        self.records = [
            read_clara(item, f"{name}.json: item {i}")
            for i, item in enumerate(self.facts["items"])
        ]
        examples = self.draw(self.maker)
        if self.stage == "end_to_end":
            most = max(len(record.documents) for record in self.records)
            settings["candidates"] = most
        pad = self.tokenizer.pad_id
        self.layout = layout_of(self.stage, memory, data, **settings, pad_id=pad)
        self.batch: Any = collate(examples, self.layout, len(examples))

    def draw(self, make: Any) -> list[Any]:
        source = PythonRandom(self.facts["python_random_seed"])
        return [make(record, source) for record in self.records]


def memory_config(meta: dict[str, Any]) -> MemoryConfig:
    memory = MemoryConfig(meta["doc_max_length"], meta["compr_rate"])
    assert memory.num_memory == meta["n_mem_tokens"]
    return memory


def base_tokenizer(folder: Path) -> ClaraTokenizer:
    meta = read_json(folder / "meta.json")
    # The original looks for "qwen" in this name.
    name = read_json(folder / "stage1" / "config.json")["decoder_model_name"]
    base = present(folder / "base")
    return ClaraTokenizer.load(base, meta["n_mem_tokens"], name)


@pytest.fixture(scope="module")
def cases() -> dict[tuple[Path, str], Case]:
    return {}


@pytest.fixture(params=STAGES)
def case(backbone_dir: Path, request: pytest.FixtureRequest, cases) -> Case:
    key = (backbone_dir, request.param)
    if key not in cases:
        cases[key] = Case(*key)
    return cases[key]


def test_special_ids(backbone_dir: Path):
    meta = read_json(backbone_dir / "meta.json")
    tokenizer = base_tokenizer(backbone_dir)
    assert list(tokenizer.memory_ids) == meta["mem_token_ids"]
    for name in ("ae_id", "enc_id", "sep_id", "bos_id", "eos_id", "pad_id"):
        assert getattr(tokenizer, name) == meta[name], name
    assert tokenizer.sep_id + 1 == meta["tokenizer_len"]
    assert readable(tokenizer.bos) == meta["bos_token"]
    assert readable(tokenizer.eos) == meta["eos_token"]


def test_prompt_strings(case: Case):
    tokenizer = case.tokenizer
    said = case.draw(partial(case.maker.stage.dialogue, case.maker))
    texts = [
        readable(tokenizer.chat(d.prompt.system, d.prompt.user, d.answer)) for d in said
    ]
    assert texts == [prompt["text"] for prompt in case.facts["prompts"]]
    lengths = [tokenizer.encode_chat(d.prompt, d.answer)[1] for d in said]
    assert lengths == [prompt["prompt_len"] for prompt in case.facts["prompts"]]


def test_prompt_ids_and_masks(case: Case):
    width = case.arrays["dec_input_ids"].shape[1]
    ids, mask = left_padded(case.batch.prompt, width, case.tokenizer.pad_id)
    np.testing.assert_array_equal(ids, case.arrays["dec_input_ids"])
    np.testing.assert_array_equal(mask, case.arrays["dec_attention_mask"] > 0)
    assert width == mask.sum(-1).max()


def test_labels(case: Case):
    width = case.arrays["labels"].shape[1]
    rows = Tokens(case.batch.labels, case.batch.prompt.mask)
    labels, _ = left_padded(rows, width, IGNORE)
    np.testing.assert_array_equal(labels, case.arrays["labels"])


def test_encoder_ids_and_masks(case: Case):
    rows = case.batch.candidates or case.batch.documents
    # Absent documents have no row in the original.
    there = np.asarray(rows.mask).any(-1)
    rows = Tokens(rows.ids[there], rows.mask[there], right_padded=True)
    width = case.arrays["enc_input_ids"].shape[1]
    ids, mask = left_padded(rows, width, case.tokenizer.pad_id)
    np.testing.assert_array_equal(ids, case.arrays["enc_input_ids"])
    np.testing.assert_array_equal(mask, case.arrays["enc_attention_mask"] > 0)
    assert width == case.layout.documents[-1]


def test_question_ids_and_masks(backbone_dir: Path, cases):
    case = cases.get((backbone_dir, "stage2_e2e")) or Case(backbone_dir, "stage2_e2e")
    width = case.arrays["query_input_ids"].shape[1]
    ids, mask = left_padded(case.batch.question, width, case.tokenizer.pad_id)
    np.testing.assert_array_equal(ids, case.arrays["query_input_ids"])
    np.testing.assert_array_equal(mask, case.arrays["query_attention_mask"] > 0)
    assert width == case.layout.questions[-1]


@pytest.mark.parametrize("name", ["stage2_retrieval", "stage2_retrieval_emptyrow"])
def test_positives(backbone_dir: Path, name: str):
    facts = read_json(backbone_dir / f"{name}.json")
    arrays = read_arrays(backbone_dir / f"{name}.npz")
    items = read_json(backbone_dir / "stage2_e2e.json")["items"]
    meta = read_json(backbone_dir / "meta.json")
    memory = memory_config(meta)
    data = DataConfig(question_max_length=meta["dec_max_len"], too_long="cut")
    maker = example_maker(base_tokenizer(backbone_dir), "rerank", memory, data)
    examples: list[Example] = [
        maker(read_clara({**item, "pos_index": gold}, name))
        for item, gold in zip(items, facts["pos_index"], strict=True)
    ]
    layout = layout_of("rerank", memory, data, candidates=len(items[0]["docs"]))
    batch = collate(examples, layout, len(examples))
    assert batch.prompt is None
    for ours, gold in zip(
        np.asarray(batch.positives), arrays["pos_index"], strict=True
    ):
        assert set(np.flatnonzero(ours)) == set(gold[gold >= 0])


@pytest.mark.parametrize("name", GENERATIONS)
def test_generation_prompts_and_texts(backbone_dir: Path, name: str):
    facts = read_json(backbone_dir / "generation.json")
    if name not in facts:
        pytest.fail(f"missing: '{name}' in {backbone_dir.name}/generation.json")
    facts = facts[name]
    tokenizer = base_tokenizer(backbone_dir)
    background = tokenizer.slots(facts["generation_top_k"])
    draw = PythonRandom(facts["python_random_seed"])
    prompts = [
        paraphrase_prompt(background, draw.integers(13))
        if facts["method"] == "generate_from_paraphrase"
        else answer_prompt(background, question)
        for question in facts["args"]["questions"]
    ]
    texts = [readable(tokenizer.chat(*prompt)) for prompt in prompts]
    assert texts == facts["prompts"]
    assert [tokenizer.decode(ids) for ids in facts["token_ids"]] == facts["text"]
