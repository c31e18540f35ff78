"""A run's folder belongs to one config, and its files are whole."""

import dataclasses
import json

import pytest

from clara_jax.config import HooksConfig, OptimConfig, RunConfig
from clara_jax.errors import ClaraError
from clara_jax.files import write_json
from clara_jax.train.run_folder import RunFolder


def config(folder, **changes):
    return RunConfig(
        **{"stage": "scp", "workdir": str(folder), "backbone": "b"} | changes
    )


@pytest.fixture
def begun(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(config(tmp_path / "run"))
    folder.metrics.write_text('{"step": 1, "loss": 2.0, "tokens_per_s": 5.0}\n')
    yield folder
    folder.close()


def test_another_config_is_refused_by_its_fields(begun):
    other = config(begun.path, stage="instruct", optim=OptimConfig(learning_rate=1.0))
    with pytest.raises(ClaraError) as caught:
        begun.check(other)
    text = str(caught.value)
    assert 'stage (was "scp", now "instruct")' in text
    assert "optim.learning_rate (was 0.0001, now 1.0)" in text and "\n" not in text


def test_what_changes_no_step_may_change(begun):
    begun.check(config(begun.path, hooks=HooksConfig(log_every=1)))
    begun.claim(config(begun.path, hooks=HooksConfig(log_every=1)))
    assert json.loads(begun.config.read_text())["hooks"]["log_every"] == 1


def test_a_run_of_an_earlier_version_goes_on(begun):
    written = json.loads(begun.config.read_text())
    for name in ("candidates", "store", "search"):
        del written[name]
    begun.config.write_text(json.dumps(written))
    begun.check(config(begun.path))
    with pytest.raises(ClaraError, match=r'search \(was "auto", now "exact"\)'):
        begun.check(config(begun.path, search="exact"))


def test_a_run_that_never_began_gives_its_folder_up(begun):
    begun.metrics.unlink()
    begun.check(config(begun.path, stage="instruct"))
    (begun.checkpoints / "3").mkdir(parents=True)
    with pytest.raises(ClaraError, match="another config"):
        begun.check(config(begun.path, stage="instruct"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ClaraError, match="holds other files and no config.json"):
        RunFolder(tmp_path).claim(config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_summary_has_the_last_values_and_the_middle_speed(begun):
    with begun.metrics.open("a") as file:
        file.write('{"step": 2, "loss": 1.5, "tokens_per_s": 100.0, "seconds": 9.0}\n')
        file.write('{"step": 3, "loss": 1.0, "tokens_per_s": 90.0, "tokens": 7}\n')
        file.write('{"step": 3, "eval/recall@1": 0.5}\n')
    summary = begun.write_summary(config(begun.path), parameters={"trainable": 3})
    assert summary["steps"] == 3 and summary["tokens_per_s"] == 90.0
    assert summary["final"] == {"loss": 1.0, "eval/recall@1": 0.5}
    assert summary["seconds"] == 9.0 and summary["tokens"] == 7
    assert json.loads(begun.summary.read_text()) == json.loads(json.dumps(summary))
    assert summary["versions"]["jax"]


def test_a_full_disk_leaves_the_earlier_file(begun, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    before = begun.config.read_text()
    monkeypatch.setattr("clara_jax.files.sync", full)
    with pytest.raises(ClaraError, match="disk is full"):
        write_json(begun.config, dataclasses.asdict(config(begun.path)))
    assert begun.config.read_text() == before


def test_damaged_json_is_named(begun):
    begun.config.write_text("{")
    with pytest.raises(ClaraError, match="config.json: is not JSON"):
        begun.check(config(begun.path))


def test_one_process_at_a_time(begun):
    begun.claim(config(begun.path))
    begun.claim(config(begun.path))  # the same one, again
    other = RunFolder(begun.path)
    with pytest.raises(ClaraError, match="another process is training here"):
        other.claim(config(begun.path))
    begun.close()
    other.claim(config(begun.path))
    other.close()


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("x")
    with pytest.raises(ClaraError, match="'workdir': .*run is a file; give a folder"):
        RunFolder(path).check(config(path))
    assert path.read_text() == "x"
