"""Config files and overrides: what they make, and one line for every mistake."""

import textwrap

import pytest

from clara_jax.errors import ClaraError
from clara_jax.train.experiments import read_experiment

CONFIG = """
    from ml_collections import ConfigDict
    from clara_jax.config import RunConfig, to_dict

    def get_config(arg=""):
        fields = to_dict(RunConfig(stage="scp", workdir="w", backbone="random:tiny"))
        config = ConfigDict(fields)
        config.data.train = ("a.jsonl",)
        if arg == "local":
            config.optim.steps = 3
        {extra}
        return config
"""


@pytest.fixture
def write(tmp_path):
    def write(extra="pass"):
        path = tmp_path / "experiment.py"
        path.write_text(textwrap.dedent(CONFIG).replace("{extra}", extra))
        return str(path)

    return write


def test_overrides_of_every_kind(write):
    experiment = read_experiment(
        [
            f"--config={write()}",
            "--config.optim.learning_rate=1",
            "--config.optim.steps=7",
            "--config.data.shuffle=False",
            "--config.data.train=../x/a-1.jsonl,b.json",
            "--config.data.fields=question=query,answers=meta.golden",
            "--config.data.doc_buckets=(32, 64)",
            "--config.workdir=elsewhere",
        ]
    )
    (run,) = experiment.runs
    assert run.optim.learning_rate == 1.0 and run.optim.steps == 7
    assert run.data.train == ("../x/a-1.jsonl", "b.json")
    assert run.data.fields == ("question=query", "answers=meta.golden")
    assert run.data.doc_buckets == (32, 64) and not run.data.shuffle
    assert run.workdir == "elsewhere" and experiment.quickstart is None


def test_the_part_after_the_colon_goes_to_the_file(write):
    experiment = read_experiment(["--config", f"{write()}:local"])
    assert experiment.runs[0].optim.steps == 3


def test_stages_become_runs_that_start_from_each_other(write):
    extra = """config.stages = (
            dict(name="base", stage="lm", data=dict(train=("{workdir}/d/t.jsonl",))),
            dict(name="read", stage="scp", backbone="", optim=dict(steps=5)),
            dict(name="find", stage="end_to_end", backbone="", init_from="other"),
        )
    config.quickstart = dict(people=3)"""
    experiment = read_experiment(
        [f"--config={write(extra)}", "--config.workdir=all", "--config.seed=4"]
    )
    base, read, find = experiment.runs
    assert (base.workdir, read.workdir, find.workdir) == (
        "all/base",
        "all/read",
        "all/find",
    )
    assert base.init_from == "" and read.init_from == "all/base"
    assert find.init_from == "other"
    assert base.data.train == ("all/d/t.jsonl",) and read.data.train == ("a.jsonl",)
    assert read.optim.steps == 5 and read.optim.learning_rate == 1e-4
    assert read.seed == 4 and read.backbone == ""
    assert experiment.quickstart == {"people": 3}


@pytest.mark.parametrize(
    ("extra", "override", "message"),
    [
        ("config.optim.learning_rat = 1.0", "", "learning_rat' is unknown"),
        ("config.lock(); config.optim.stepps = 1", "", r"line 11: .*stepps"),
        ("config.optim = dict(stepps=1)", "", "'optim.stepps' is unknown.*'steps'"),
        ("raise RuntimeError('no luck')", "", "experiment.py line 11: no luck"),
        ("config.stages = (dict(name='a', sede=1),)", "", "'sede' is unknown.*'seed'"),
        ("config.stages = (dict(stage='lm'),)", "", r"stages\[0\].name"),
        ("config.stages = (dict(name='a'), dict(name='a'))", "", "'a' is taken"),
        ("config.stages = (dict(name='a', seed=-1),)", "", "stage 'a': .*'seed'"),
        ("config.stages = 3", "", "'stages' must be a tuple of groups"),
        ("return 3", "", "returns no ConfigDict"),
        ("(", "", "line"),
        (
            "pass",
            "--config.optim.learning_rat=1",
            "'optim.learning_rat' is unknown; did you mean 'optim.learning_rate'",
        ),
        ("pass", "--config.stag=lm", "'stag' is unknown; did you mean 'stage'"),
        ("pass", "--config.optim.steps=many", "config.optim.steps=many"),
        ("pass", "--config.optim.steps=1.5", "config.optim.steps=1.5"),
        ("pass", "--config.optim=1", "'optim' is a group"),
        ("pass", "--config.optim.steps.x=1", "'optim.steps.x' is unknown"),
        ("pass", "--config.stage=scpp", "config field.*stage.*'scpp'"),
        ("pass", "--config.data.train=(1,)", "'data.train' must be str"),
        ("pass", "--config.optim.accumulate=5", "does not divide"),
        ("pass", "--workdir=x", "workdir"),
        ("pass", "extra", "'extra' is unknown"),
        ("pass", "--config.workdir=", "'workdir' is empty"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(write, extra, override, message):
    arguments = [f"--config={write(extra)}"] + ([override] if override else [])
    with pytest.raises(ClaraError, match=message) as caught:
        read_experiment(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no --config=FILE"),
        (["--config=nowhere.py"], "'nowhere.py' does not exist"),
        (["--config"], "--config names no file"),
    ],
)
def test_a_missing_file_is_named(arguments, message):
    with pytest.raises(ClaraError, match=message):
        read_experiment(arguments)


def test_only_one_python_file_is_run(write, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ClaraError, match=r"config\.json' is not a Python file"):
        read_experiment([f"--config={tmp_path / 'config.json'}"])
    with pytest.raises(ClaraError):
        read_experiment([f"--config={write()}", "--config=configs/tiny.py"])


PIPELINE = """
        config.unlock()
        rate = config.memory.get_ref("compression_rate")
        config.mix = ConfigDict({"folder": "{workdir}/mix", "recipe": "r.toml"})
        config.report = ConfigDict({"questions": 5, "share": 3.0})
        config.stages = (
            {"name": "one", "share": 2, "data": {"train": ("{mix}/a.jsonl",)}},
            {"name": "two", "data": {"prompt_max_length": 10 + 256 // rate}},
        )
"""


def test_a_pipeline_has_shares_of_its_time_and_values_that_refer_to_others(write):
    path = write(PIPELINE.strip().replace("\n        ", "\n    " * 2))
    over = ["--config.workdir=w", "--config.memory.compression_rate=4"]
    experiment = read_experiment(
        [f"--config={path}", *over, "--config.minutes=8", "--config.mix.recipe=x.toml"]
    )
    assert experiment.minutes == 8.0
    assert experiment.shares == {"one": 2.0, "two": 1.0, "report": 3.0}
    assert experiment.mix == {"folder": "w/mix", "recipe": "x.toml"}
    assert experiment.report == {"questions": 5}
    one, two = experiment.runs
    assert one.data.train == ("w/mix/a.jsonl",) and one.minutes == 0
    assert two.data.prompt_max_length == 74
    for wrong, message in (
        ("minutes=-1", "'minutes': must not be negative"),
        ("report.share=0", "'report.share' must be above 0"),
    ):
        with pytest.raises(ClaraError, match=message):
            read_experiment([f"--config={path}", f"--config.{wrong}"])


def test_a_single_run_has_its_own_minutes(write):
    (run,) = read_experiment([f"--config={write()}", "--config.minutes=1.5"]).runs
    assert run.minutes == 1.5
