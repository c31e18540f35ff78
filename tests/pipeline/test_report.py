"""Numbers into a report, and a card."""

import pytest
from toy_folder import write_toy

from clara_jax.config import RunConfig
from clara_jax.convert import load_model
from clara_jax.evaluate.examine import Prediction
from clara_jax.files import write_json
from clara_jax.pipeline.before import ReportSettings, card
from clara_jax.pipeline.report import NAMES, _scores, to_markdown

SAID = {
    "model": "Corin",
    "gold": "Corin",
    "none": "",
    "shuffled": "Jory",
    "tuned_text": "in Corin",
}


def predictions(count):
    return [
        Prediction(i, "q", ("Corin",), (0,), SAID, {"model": [0, 1], "before": [1, 0]})
        for i in range(count)
    ]


@pytest.fixture
def facts():
    scores = _scores(predictions(8), 0)
    stage = {
        "name": "scp",
        "steps": 40,
        "cut": {"steps": 40, "of": 1000, "minutes": 1.0},
        "tokens": 12345,
        "tokens_per_s": 678.0,
        "seconds": 61.0,
        "product_share": 0.125,
        "loss": [2.5, 1.25],
        "held_out": {"loss": 1.0, "shuffled/loss": 3.0},
    }
    return {
        "name": "run",
        "backbone": "base",
        "rate": 16,
        "vectors": 16,
        "top_k": 5,
        "candidates": 20,
        "questions": {"answered": 8, "of": 20},
        "all": scores,
        "sources": {"squad": scores},
        "corpus": None,
        "training": [stage],
        "product_flops": 2e12,
        "device": "a device",
        "mix": {
            "sources": {
                "squad": {
                    "licence": "CC BY-SA 4.0",
                    "passages": {"train": 90, "held_out": 10},
                    "questions": {"train": 900, "held_out": 100},
                }
            }
        },
    }


def test_differences_are_question_by_question():
    scores = _scores(predictions(8), 0)
    pairs = {(one, other): mean for one, other, mean, *_ in scores["differences"]}
    expected = {"shuffled": 1.0, "none": 1.0, "tuned_text": 1 / 3}
    assert pairs == pytest.approx({("gold", k): v for k, v in expected.items()})
    assert scores["retrieval"]["model"]["recall@1"]["mean"] == 1.0
    assert scores["retrieval"]["before"]["recall@1"]["mean"] == 0.0
    assert scores["retrieval"]["before"]["recall@5"]["mean"] == 1.0


def test_every_number_has_its_place(facts):
    text = to_markdown(facts)
    assert "# run: base at 16x" in text
    assert "8 held-out questions (of 20, for which there was time)" in text
    assert f"| {NAMES['gold']} | 1.000 (1.000-1.000) |" in text
    assert "| squad (8) |" in text and "| 1.000, 1.000, 1.000 |" in text
    assert "reasoner, before stage 3: Recall@1, @5 | 0.000, 1.000 |" in text
    assert "Recall over the whole corpus is not known" in text
    assert "| scp | 40 of 1,000 (time) | 61 s | 12,345 | 678 | 12.5% |" in text
    assert "2.500 to 1.250 | 1.000 / 3.000 |" in text
    assert "| squad | CC BY-SA 4.0 | 90 / 10 | 900 / 100 |" in text
    rankings = facts["all"]["retrieval"]
    sizes = {"passages": 784, "of": 900, "questions": 6}
    facts["corpus"] = {**sizes, "rankings": rankings}
    text = to_markdown(facts)
    assert "Recall@5 of 784" in text and "6 of 8 questions" in text
    assert "of its 900 passages there was time for the first" in text


def test_the_card_names_data_and_licences(tmp_path, facts):
    model = load_model(write_toy(tmp_path / "run"))
    summary = {
        "stage": "end_to_end",
        "steps": 40,
        "tokens": 12345,
        "final": {"loss": 1.25},
        "device": {"kind": "a device"},
        "versions": {"clara_jax": "1", "jax": "2"},
        "cut": {"of": 1000},
    }
    settings = ReportSettings(name="toy-4x", base="a base")
    write_json(tmp_path / "mix" / "manifest.json", facts["mix"])

    def card_of(stage, mix, read, scores=""):
        run = RunConfig(stage, str(tmp_path / stage), "some base")
        write_json(tmp_path / stage / "summary.json", summary)
        return card(tmp_path, run, settings, mix and str(tmp_path / mix), read, scores)

    text = card_of("end_to_end", "mix", model, "| a | table |")
    for part in (
        "toy-4x: CLaRa adapters for a base",
        "- squad: CC BY-SA 4.0",
        "Cut by its deadline, of 1,000",
    ):
        assert part in text
    assert "| a | table |" in text and "loss 1.250; on a device" in text
    assert 'clara_jax.load("toy-4x")' in text and "becomes 2 vectors" in text
    plain = load_model(write_toy(tmp_path / "plain", roles=("generator",)))
    baseline = card_of("text", "", plain)
    assert "toy-4x-text: CLaRa adapters" in baseline
    assert "A baseline" in baseline and "vectors (" not in baseline
    assert "Not recorded" in card_of("end_to_end", "", model)
