"""The shipped base and its tokenizer, alone and under the prompts of all stages."""

import random
import re
import types
from itertools import islice

import pytest
from safetensors.numpy import load_file

from clara_jax.clara import Network
from clara_jax.config import MemoryConfig
from clara_jax.convert import load_model, write_hf_folder
from clara_jax.data import open_records
from clara_jax.evaluate import TextAnswers, questions_of
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.model import Transformer
from clara_jax.quickstart import BASE, prepare, world
from clara_jax.quickstart.outputs import random_base
from clara_jax.text import (
    PARAPHRASES,
    ClaraTokenizer,
    answer_prompt,
    load_tokenizer,
    paraphrase_prompt,
    scp_prompt,
    scp_target,
)
from tests.quickstart import word_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> ClaraTokenizer:
    return ClaraTokenizer(load_tokenizer(BASE), 6)


def test_tokenizer_files_follow_from_the_world_and_the_prompts(tmp_path):
    word_tokenizer.write(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (BASE / path.name).read_bytes(), path.name
    assert len(load_tokenizer(BASE)) == load_model(BASE).config.vocab_size


def test_words_cover_everything():
    draw, known = random.Random(3), set(word_tokenizer.words())
    for item in world.draw_entries(world.NAMES[False][:100] + world.NAMES[True], draw):
        texts = [item.document(draw)]
        texts += [text for pair in item.questions(draw) for text in pair]
        for text in texts:
            assert set(re.findall(r"\w+|[^\w\s]", text)) <= known


def test_prompts_have_no_unknown_words(tokenizer):
    draw = random.Random(0)
    (item,) = world.draw_entries(["Abo Alden"], draw)
    text = item.document(draw)
    question, answer = item.question("birthyear", draw)
    pairs = scp_target(*zip(*item.questions(draw), strict=True))
    asked = [(scp_prompt(text), pairs), (answer_prompt(text, question), answer)]
    asked += [(paraphrase_prompt(text, i), text) for i in range(len(PARAPHRASES))]
    for prompt, target in asked:
        ids, count = tokenizer.encode_chat(prompt, target)
        assert tokenizer.base.unk_token_id not in ids
        assert tokenizer.decode(ids[count:-1]).replace("\n", " ") == (
            target.replace("\n", " ")
        )
        assert ids[-1] == tokenizer.eos_id


def test_pretraining_text_is_what_the_template_renders(tokenizer):
    longest = 0
    for row in islice(world.pretraining(random.Random(0)), 50):
        turns = re.findall(r"<\|(\w+)\|>(.*?)</s>", row["text"], re.DOTALL)
        messages = [{"role": role, "content": text} for role, text in turns]
        shown = tokenizer.base.apply_chat_template(messages, tokenize=False)
        assert shown == row["text"]
        longest = max(longest, len(turns))
        system, user, said, *_ = (text for _, text in turns)
        assert row["text"].startswith(tokenizer.chat(system, user, said))
    assert longest == 1 + 2 * 6


def test_unknown_words_are_tokens_of_their_own(tokenizer):
    ids = tokenizer.base.encode("Where was Nobody born?", add_special_tokens=False)
    assert ids[2] == tokenizer.base.unk_token_id and len(ids) == 5


def test_base_round_trip(tmp_path):
    model = load_model(BASE)
    write_hf_folder(tmp_path / "base", model, dtype="float32")
    assert load_model(tmp_path / "base").config == model.config
    before = load_file(BASE / "model.safetensors")
    after = load_file(tmp_path / "base" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    size = sum(path.stat().st_size for path in BASE.iterdir())
    assert size < 5e6


def test_random_base_follows_from_its_seed(tmp_path):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        write_hf_folder(tmp_path / name, random_base(seed), dtype="float32")
    a, again, b = (load_model(tmp_path / name) for name in ("a", "again", "b"))
    assert a.config == load_model(BASE).config
    tables = [model.params["embed"]["embedding"] for model in (a, again, b)]
    assert (tables[0] == tables[1]).all() and (tables[0] != tables[2]).any()


def test_shipped_base_answers_from_full_text(tmp_path):
    folder = prepare(tmp_path, {"scp": 1, "instruct": 1, "end_to_end": 1})
    questions = questions_of(open_records(folder / "held_out.jsonl"), 32)
    model = load_model(BASE)
    transformer = Transformer(model.config, model.config.vocab_size)
    clara = Clara(
        network=Network(transformer, model.backbone, {}),
        tokenizer=ClaraTokenizer(model.tokenizer, 8),
        memory=MemoryConfig(doc_max_length=34, compression_rate=4),
        config=AnswerConfig(max_new_tokens=6, batch_size=32),
    )
    nothing = types.SimpleNamespace(trainable={})
    found = dict(TextAnswers(clara, questions).run(nothing))
    assert found["text/exact_match"] >= 0.9
