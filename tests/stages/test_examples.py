import numpy as np
import pytest
from toy_stages import example_maker as maker

from clara_jax.clara.batches import IGNORE
from clara_jax.config import DataConfig, MemoryConfig
from clara_jax.data import Record, check_records
from clara_jax.data.collating import measure
from clara_jax.data.examples import supervise
from clara_jax.errors import ClaraError
from clara_jax.text import PARAPHRASES, ClaraTokenizer
from tests.text.toy import toy_tokenizer

MEMORY = MemoryConfig(doc_max_length=8, compression_rate=4)
LONG = DataConfig(prompt_max_length=600, question_max_length=40)


@pytest.fixture(scope="module")
def tokenizer() -> ClaraTokenizer:
    return ClaraTokenizer(toy_tokenizer(), MEMORY.num_memory)


def qa(documents=("one", "two"), **fields) -> Record:
    fields = {"questions": ("why?",), "answers": ("so",), "source": "f:1"} | fields
    return Record(tuple(documents), **fields)


class Fixed(np.random.Generator):
    """Draws the number it is told."""

    def __init__(self, number: int):
        super().__init__(np.random.PCG64())
        self.number = number

    def integers(self, low, /):
        assert self.number < low
        return self.number


def answer_of(tokenizer: ClaraTokenizer, example) -> str:
    kept = example.labels != IGNORE
    np.testing.assert_array_equal(example.labels[kept], example.prompt[kept])
    return tokenizer.decode(example.labels[kept], skip_special=False)


def test_supervise_counts_and_cuts():
    assert supervise([5, 6, 7, 8], 2, 9).tolist() == [IGNORE, IGNORE, 7, 8]
    assert supervise([5, 6, 7, 8], 2, 3).tolist() == [IGNORE, IGNORE, 7]
    assert supervise([5, 6, 7, 8], 5, 9).tolist() == [IGNORE] * 4


def test_scp_pairs(tokenizer):
    make = maker(tokenizer, "scp", MEMORY, LONG, top_k=5)
    record = qa(["a document"], questions=("p?", "q?"), answers=("x", "y"))
    example = make(record, np.random.default_rng(0))
    target = "Question: p?\nAnswer: x\nQuestion: q?\nAnswer: y</s>"
    assert answer_of(tokenizer, example) == target
    row = tokenizer.encode_document("a document", 8)
    assert [r.tolist() for r in example.documents] == [row]
    slots = example.prompt[example.prompt >= tokenizer.text_vocab]
    assert slots.tolist() == [*tokenizer.memory_ids, tokenizer.sep_id]
    assert measure(example)[0] == len(example.prompt) + len(row)


def test_scp_paraphrase_draws_an_instruction(tokenizer):
    make = maker(tokenizer, "scp", MEMORY, LONG)
    record = Record(("a document",), (), ("a document",), "paraphrase", source="f:1")
    for number in (0, 12):
        said = make.stage.dialogue(make, record, Fixed(number))
        want = PARAPHRASES[number].replace("{docs}", tokenizer.slots(1))
        assert said.prompt.user == want
        assert answer_of(tokenizer, make(record, Fixed(number))) == "a document</s>"
    assert make.stage.dialogue(make, record) == make.stage.dialogue(
        make, record, Fixed(0)
    )


def test_separator_is_a_choice(tokenizer):
    memory = MemoryConfig(8, 4, separator=False)
    example = maker(tokenizer, "instruct", memory, LONG, top_k=2)(qa())
    slots = example.prompt[example.prompt >= tokenizer.text_vocab]
    assert slots.tolist() == [*tokenizer.memory_ids] * 2


def test_instruct(tokenizer):
    make = maker(tokenizer, "instruct", MEMORY, LONG, top_k=3)
    example = make(qa())
    assert answer_of(tokenizer, example) == "so</s>"
    assert len(example.documents) == 2
    slots = example.prompt[example.prompt >= tokenizer.text_vocab]
    assert slots.tolist() == [*tokenizer.memory_ids, tokenizer.sep_id] * 2


def test_instruct_keeps_positives(tokenizer):
    make = maker(tokenizer, "instruct", MEMORY, LONG, top_k=2)
    said = make.stage.dialogue(make, qa("abcd", positives=(3,)))
    assert said.documents == ("a", "d")
    with pytest.raises(ClaraError, match="f:1: has 4 documents, more than"):
        make(qa("abcd"))


def test_one_of_several_questions_is_drawn(tokenizer):
    make = maker(tokenizer, "instruct", MEMORY, LONG, top_k=2)
    record = qa(questions=("p?", "q?"), answers=("x", "y"))
    assert answer_of(tokenizer, make(record)) == "x</s>"
    assert answer_of(tokenizer, make(record, Fixed(1))) == "y</s>"


def test_end_to_end(tokenizer):
    make = maker(tokenizer, "end_to_end", MEMORY, LONG, top_k=2)
    record = qa("abc", positives=(2,))
    example = make(record)
    assert example.question.tolist() == tokenizer.encode_document("why?", 40)
    assert len(example.candidates) == 3
    assert example.positives.tolist() == [False, False, True]
    slots = example.prompt[example.prompt >= tokenizer.text_vocab]
    assert slots.tolist() == [*tokenizer.memory_ids, tokenizer.sep_id] * 2
    numbered = make(record, candidate_ids=np.asarray([4, 5, 6], np.int32))
    assert numbered.candidates == ()
    assert numbered.candidate_ids.tolist() == [4, 5, 6]
    with pytest.raises(ClaraError, match=r"f:1: has 1 candidate .*top_k 2"):
        make(qa("a"))


def test_a_corpus_needs_no_candidates_of_the_record(tokenizer):
    few = DataConfig(prompt_max_length=600, question_max_length=40, candidates=2)
    make = maker(tokenizer, "end_to_end", MEMORY, few, top_k=2, corpus=True)
    for documents, positives in (("a", ()), ("a", (0,)), ("abcd", (3, 1))):
        record = qa(documents, positives=positives)
        example = make(record)
        make.stage.check_record(make, record)
        assert example.candidates == () and example.positives is None
        assert example.gold == tuple(documents[i] for i in positives)
        assert example.question.tolist() == tokenizer.encode_document("why?", 40)
        slots = example.prompt[example.prompt >= tokenizer.text_vocab]
        assert len(slots) == 2 * (MEMORY.num_memory + 1)


def test_reasoner_and_generator_get_one_question(tokenizer):
    make = maker(tokenizer, "end_to_end", MEMORY, LONG, top_k=2)
    record = qa(questions=("p?", "q?"), answers=("x", "y"))
    example = make(record, Fixed(1))
    assert example.question.tolist() == tokenizer.encode_document("q?", 40)
    assert "Question:q?" in tokenizer.decode(example.prompt)


def test_rerank(tokenizer):
    make = maker(tokenizer, "rerank", MEMORY, LONG, top_k=9)
    example = make(qa("abc", positives=(0, 2)))
    assert example.prompt is None
    assert example.positives.tolist() == [True, False, True]


def test_language_model(tokenizer):
    make = maker(tokenizer, "lm", MEMORY, LONG)
    example = make(Record(("plain words",), kind="text"))
    text = tokenizer.decode(example.prompt, skip_special=False)
    assert text == "<s>plain words</s>"
    np.testing.assert_array_equal(example.labels, example.prompt)
    spelled = make(Record(("<s>plain words</s>",), kind="text"))
    assert spelled.prompt.tolist() == example.prompt.tolist()
    read = make(qa())
    text = tokenizer.decode(read.prompt)
    assert "Background:\none\n\ntwo\n\nQuestion:why?" in text
    assert text.endswith("so")
    cut = maker(tokenizer, "lm", MEMORY, DataConfig(prompt_max_length=4))
    assert len(cut(qa()).prompt) == 4


def test_documents_are_cut_to_their_length(tokenizer):
    make = maker(tokenizer, "instruct", MEMORY, LONG, top_k=1)
    example = make(qa(["a very long document"]))
    assert len(example.documents[0]) == 8 + 3 + 2


def test_long_questions(tokenizer):
    record = qa(questions=("why " * 20,))
    make = maker(tokenizer, "rerank", MEMORY, DataConfig())
    with pytest.raises(
        ClaraError, match="f:1: the question has 80 tokens, more than 8"
    ):
        make(record)
    make = maker(tokenizer, "rerank", MEMORY, DataConfig(too_long="cut"))
    assert len(make(record).question) == 8 + 3 + 2


def test_long_prompts(tokenizer):
    short = maker(tokenizer, "instruct", MEMORY, LONG, top_k=2)(qa())
    length, prompt = len(short.prompt), int((short.labels == IGNORE).sum())

    def make(limit, **settings):
        data = DataConfig(prompt_max_length=limit, **settings)
        return maker(tokenizer, "instruct", MEMORY, data, top_k=2)(qa())

    assert answer_of(tokenizer, make(length - 1)) == "so"
    assert answer_of(tokenizer, make(prompt + 1)) == "s"
    with pytest.raises(ClaraError, match="leaves no room for an answer"):
        make(prompt)
    assert (make(prompt, too_long="cut").labels == IGNORE).all()
    with pytest.raises(ClaraError, match="f:1: the documents' slots need"):
        make(20, too_long="cut")


def test_stage_and_record_must_fit(tokenizer):
    text = Record(("t",), kind="text", source="f:1")
    again = Record(("t",), (), ("t",), "paraphrase", source="f:1")
    for stage in ("scp", "instruct", "end_to_end", "rerank"):
        make = maker(tokenizer, stage, MEMORY, LONG)
        with pytest.raises(ClaraError, match="f:1: is of type text"):
            make(text)
        if stage != "scp":
            with pytest.raises(ClaraError, match="f:1: is of type paraphrase"):
                make(again)
    with pytest.raises(ClaraError, match="f:1: has 2 documents, but stage scp"):
        maker(tokenizer, "scp", MEMORY, LONG)(qa())
    with pytest.raises(ClaraError, match="2 memory tokens, but"):
        maker(tokenizer, "scp", MemoryConfig(8, 2), LONG)
    few = DataConfig(candidates=1)
    with pytest.raises(ClaraError, match="data.candidates is 1; raise it"):
        maker(tokenizer, "rerank", MEMORY, few)(qa())


def test_a_question_without_an_answer_is_for_no_loss(tokenizer):
    unknown = qa(["a"], answers=())
    told = "f:1: has no answer, as in a test set, .* clara_jax.evaluate"
    stages = "scp instruct end_to_end rerank text closed_book lm".split()
    for stage in stages:
        make = maker(tokenizer, stage, MEMORY, LONG, top_k=1)
        for use in (make, lambda record, make=make: check_records([record], make)):
            with pytest.raises(ClaraError, match=told):
                use(unknown)
    make = maker(tokenizer, "instruct", MEMORY, LONG, top_k=1)
    assert answer_of(tokenizer, make(qa(["a"], answerable=False))) == "noanswer</s>"


def test_users_cannot_add_slots(tokenizer):
    make = maker(tokenizer, "instruct", MEMORY, LONG, top_k=1)
    example = make(qa(["a"], questions=("<MEM0>?",), answers=("<MEM1>",)))
    slots = example.prompt[example.prompt >= tokenizer.text_vocab]
    assert slots.tolist() == [*tokenizer.memory_ids, tokenizer.sep_id]


def test_records_are_checked_before_training(tokenizer):
    good = qa("abc")
    ranked = maker(tokenizer, "end_to_end", MEMORY, DataConfig(), top_k=2)
    check_records([good] * 5, ranked)
    for bad, message in [
        (qa("a"), "f:1: has 1 candidate"),
        (qa("abc", questions=("why " * 9,)), "f:1: the question has 36 tokens"),
        (Record(("t",), kind="text", source="f:1"), "f:1: is of type text"),
    ]:
        with pytest.raises(ClaraError, match=message):
            check_records([good, good, bad], ranked)
        check_records([good, bad], ranked, most=1)
        with pytest.raises(ClaraError, match=message):
            ranked(bad)
    check_records([qa()], maker(tokenizer, "lm", MEMORY, DataConfig()))


def test_questions_without_documents_are_for_stages_that_read_none(tokenizer):
    alone = qa([])
    told = "f:1: has no documents; .* --fields documents=NAME .*data candidates"
    for stage in "scp instruct end_to_end rerank text".split():
        make = maker(tokenizer, stage, MEMORY, LONG, top_k=1)
        for use in (make, lambda record, make=make: check_records([record], make)):
            with pytest.raises(ClaraError, match=told):
                use(alone)
    for stage in ("closed_book", "lm"):
        make = maker(tokenizer, stage, MEMORY, LONG, top_k=1)
        check_records([alone], make)
        assert "why?" in tokenizer.decode(make(alone).prompt)


def test_bad_records_are_named_together(tokenizer, capsys):
    make = maker(tokenizer, "end_to_end", MEMORY, LONG, top_k=2)
    bad = [qa("a", source=f"f:{i}") for i in range(1, 31)]
    text = Record(("t",), kind="text", source="g: record 7")
    with pytest.raises(ClaraError) as caught:
        check_records([qa("abc"), bad[0], qa("abc"), bad[1], text, bad[2]], make)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 records are bad"
    assert lines[1].startswith("f:1 (likewise 2, 3): has 1 candidate documents, fewer")
    assert lines[2].startswith("g: record 7: is of type text") and len(lines) == 3
    with pytest.raises(ClaraError) as caught:
        check_records([*bad[:2], qa("a", source="g:2"), *bad[2:]], make)
    lines = str(caught.value).splitlines()
    assert lines[0] == "at least 20 records are bad" and len(lines) == 2
    assert lines[1].startswith("f:1 (likewise 2, g:2, 3, 4, ") and ", 19):" in lines[1]
    with pytest.raises(ClaraError, match=r"^f:1: has 1 candidate [^\n]*$"):
        check_records(bad[:1], make)
    check_records([qa("abc", left_out=2), qa("abc"), qa("abc", left_out=1)], make)
    assert capsys.readouterr().err == (
        "note: 3 blank documents, of 2 records, are left out\n"
    )


def test_text_stages_put_documents_into_the_prompt_or_leave_them_out(tokenizer):
    words = " ".join(["long"] * 20)
    record = qa(["first", words, "third"], positives=(1, 2))
    for stage, present in (("text", True), ("closed_book", False)):
        make = maker(tokenizer, stage, MEMORY, LONG, top_k=2)
        make.stage.check_record(make, record)
        example = make(record)
        prompt = tokenizer.decode(example.prompt)
        assert example.documents == () and example.question is None
        assert answer_of(tokenizer, example).startswith("so")
        assert "why?" in prompt and "first" not in prompt
        assert ("third" in prompt) == present
        # As much of a document as the compressor would read.
        kept = tokenizer.shorten(words, MEMORY.doc_max_length)
        assert (f"\n{kept}\n" in prompt) == present and len(kept) < len(words)
    unmarked = qa(["a", "b", "c"])
    with pytest.raises(ClaraError, match="does not say which hold the answer"):
        maker(tokenizer, "text", MEMORY, LONG, top_k=2)(unmarked)


def test_shortened_texts_are_what_the_compressor_reads(tokenizer):
    text = "one two three four five six"
    assert tokenizer.shorten(text, tokenizer.document_length(text)) == text
    for count in (1, 2, 5):
        short = tokenizer.shorten(text, count)
        assert text.startswith(short) and tokenizer.document_length(short) == count
