import copy
import pickle
from pathlib import Path

import pytest

from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer, answer_prompt, load_tokenizer, readable
from clara_jax.text.prompts import Prompt
from tests.text.toy import NO_SYSTEM, toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> ClaraTokenizer:
    return ClaraTokenizer(toy_tokenizer(), 3)


def test_special_ids_follow_the_text_vocabulary(tokenizer: ClaraTokenizer):
    n = tokenizer.text_vocab
    assert n == 259
    assert tokenizer.memory_ids == (n, n + 1, n + 2)
    assert (tokenizer.ae_id, tokenizer.enc_id, tokenizer.sep_id) == (
        n + 3,
        n + 4,
        n + 5,
    )
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.sep_id + 1 == tokenizer.text_vocab + 6


def test_the_given_tokenizer_stays_as_it_was():
    given = toy_tokenizer()
    before = given.backend_tokenizer.to_str(), dict(given.init_kwargs)
    ClaraTokenizer(given, 3, "some/name")
    assert (given.backend_tokenizer.to_str(), dict(given.init_kwargs)) == before


def test_slots_are_memory_tokens_and_separators(tokenizer: ClaraTokenizer):
    one = [*tokenizer.memory_ids, tokenizer.sep_id]
    assert tokenizer.encode(tokenizer.slots(2)) == one * 2
    assert tokenizer.encode(tokenizer.slots(2, separator=False)) == one[:3] * 2
    assert readable(tokenizer.slots(1)) == "<MEM0><MEM1><MEM2><SEP>"
    assert tokenizer.slots(0) == ""


def test_document_row(tokenizer: ClaraTokenizer):
    row = tokenizer.encode_document("ab", 5)
    text = tokenizer.encode("ab")
    assert len(text) == 2
    assert row == [
        tokenizer.enc_id,
        tokenizer.bos_id,
        *text,
        tokenizer.eos_id,
        *tokenizer.memory_ids,
    ]


def test_long_document_loses_its_end(tokenizer: ClaraTokenizer):
    row = tokenizer.encode_document("abcdefgh", 5)
    assert len(row) == 5 + 3 + 3
    assert row[-3:] == list(tokenizer.memory_ids)
    assert tokenizer.decode(row) == "abcdef"
    assert tokenizer.eos_id not in row


def test_many_documents_are_encoded_alike(tokenizer: ClaraTokenizer):
    texts = ["one", "", "three is longer"]
    rows = [tokenizer.encode_document(text, 8) for text in texts]
    assert tokenizer.encode_documents(texts, 8) == rows
    assert [tokenizer.document_length(text) for text in texts] == [3, 0, 15]


@pytest.mark.parametrize("forged", ["<MEM0>", "<SEP>", "<AE><ENC>", "\ufdd0MEM0\ufdd1"])
def test_text_cannot_forge_special_tokens(tokenizer: ClaraTokenizer, forged: str):
    row = tokenizer.encode_document(f"a {forged} b", 40)
    special = [i for i in row if i >= tokenizer.text_vocab]
    assert special == [tokenizer.enc_id, *tokenizer.memory_ids]
    prompt = answer_prompt(tokenizer.slots(1), f"who is {forged}?")
    ids, _ = tokenizer.encode_chat(prompt, f"it is {forged}")
    special = [i for i in ids if i >= tokenizer.text_vocab]
    assert special == [*tokenizer.memory_ids, tokenizer.sep_id]


def test_decode_spells_special_tokens_on_request(tokenizer: ClaraTokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("h\u00e9"), tokenizer.memory_ids[1]]
    assert tokenizer.decode(ids) == "h\u00e9"
    assert tokenizer.decode(ids, skip_special=False) == "<s>h\u00e9<MEM1>"


def test_chat_counts_the_open_prompt(tokenizer: ClaraTokenizer):
    prompt = Prompt("be brief", "hi ")
    assert tokenizer.chat(*prompt) == "<s>[system]be brief[user]hi[assistant]"
    full = tokenizer.chat(*prompt, "yes")
    assert full == "<s>[system]be brief[user]hi[assistant]yes</s>"
    ids, count = tokenizer.encode_chat(prompt, "yes")
    assert ids == tokenizer.encode(full)
    assert tokenizer.decode(ids[count:]) == "yes"
    assert tokenizer.encode_chat(prompt) == (ids[:count], count)


def test_template_without_system_role_gets_one_user_message():
    tokenizer = ClaraTokenizer(toy_tokenizer(NO_SYSTEM), 2)
    assert tokenizer.chat("sys", "user") == "<s>Q sys\nuser A"
    assert tokenizer.chat("sys", "user", "x") == "<s>Q sys\nuser A x</s>"


def test_other_template_errors_are_named():
    template = "{{ raise_exception('roles must alternate') }}"
    tokenizer = ClaraTokenizer(toy_tokenizer(template), 2, "base")
    with pytest.raises(ClaraError, match="tokenizer base failed: roles must alternate"):
        tokenizer.chat("sys", "user")


def test_without_a_template_the_prompt_is_plain():
    tokenizer = ClaraTokenizer(toy_tokenizer(None), 2)
    assert tokenizer.chat("sys", "user") == "<s>sys\nuser\n"
    assert tokenizer.chat("sys", "user", "x") == "<s>sys\nuser\nx</s>"
    assert tokenizer.chat("", "user") == "<s>user\n"


def test_pad_falls_back_to_bos():
    tokenizer = ClaraTokenizer(toy_tokenizer(pad=None), 2)
    assert tokenizer.pad_id == tokenizer.bos_id == 0


def test_qwen_without_bos_takes_its_own_markers():
    base = toy_tokenizer(bos=None, extra=("<|im_start|>", "<|im_end|>"))
    tokenizer = ClaraTokenizer(base, 2, "hub/Qwen3-8B")
    assert tokenizer.bos_id == base.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.eos_id == base.convert_tokens_to_ids("</s>")
    row = tokenizer.encode_document("a", 4)
    assert row[:2] == [tokenizer.enc_id, tokenizer.bos_id]


def test_qwen_without_markers_takes_memory_tokens():
    base = toy_tokenizer(bos=None, eos=None, pad=None)
    tokenizer = ClaraTokenizer(base, 2, "/models/QWEN")
    assert tokenizer.bos_id == tokenizer.pad_id == tokenizer.memory_ids[0]
    assert tokenizer.eos_id == tokenizer.memory_ids[1]
    assert ClaraTokenizer(base, 1, "qwen").eos_id == 257


def test_others_without_bos_get_none():
    tokenizer = ClaraTokenizer(toy_tokenizer(bos=None), 2, "smol")
    assert tokenizer.bos_id is None
    assert tokenizer.encode_document("a", 4)[-3] == tokenizer.eos_id
    assert tokenizer.document_length("abcd") == 4


def test_saving_keeps_ids_and_name(tmp_path):
    base = toy_tokenizer(bos=None, extra=("<|im_start|>", "<|im_end|>"))
    tokenizer = ClaraTokenizer(base, 2, "hub/Qwen3-8B")
    tokenizer.save(tmp_path)
    again = ClaraTokenizer.load(tmp_path, 2)
    assert again.name == "hub/Qwen3-8B"
    assert again.text_vocab == tokenizer.text_vocab
    assert again.bos_id == tokenizer.bos_id
    prompt = answer_prompt(tokenizer.slots(2), "why?")
    assert again.encode_chat(prompt, "so") == tokenizer.encode_chat(prompt, "so")


def test_copies_work_in_other_processes(tokenizer: ClaraTokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_document("abc", 4) == tokenizer.encode_document("abc", 4)
    assert copy.deepcopy(tokenizer).slots(1) == tokenizer.slots(1)


def test_refusals(tmp_path):
    with pytest.raises(ClaraError, match="num_memory"):
        ClaraTokenizer(toy_tokenizer(), 0)
    with pytest.raises(ClaraError, match="no eos token"):
        ClaraTokenizer(toy_tokenizer(eos=None), 2)
    with pytest.raises(ClaraError, match="already has <MEM0>"):
        ClaraTokenizer(toy_tokenizer(extra=("<MEM0>",)), 2)
    with pytest.raises(ClaraError, match="not a fast tokenizer"):
        ClaraTokenizer(object(), 2)
    with pytest.raises(ClaraError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(ClaraError, match="models/tokenizer: there is no such folder"):
        load_tokenizer(Path("models/tokenizer"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ClaraError, match="cannot be read"):
        load_tokenizer(tmp_path)
