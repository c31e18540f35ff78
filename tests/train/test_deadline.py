import json

import jax
import numpy as np
import pytest
from fast_compiles import AS_USERS_COMPILE

from clara_jax.config import OptimConfig
from clara_jax.errors import ClaraError
from clara_jax.train.deadline import Budget, Deadline
from clara_jax.train.state import make_schedule, rate_at


class Watch:
    """A clock that goes on by what it is told."""

    now = 0.0


def walk(deadline, watch, durations, first=1):
    """Progress before each step, up to the last one that is allowed."""
    seen = []
    for step, seconds in enumerate(durations, first):
        last = deadline.begin(step, watch.now)
        seen.append(deadline.progress)
        watch.now += seconds
        if last:
            return seen
    raise AssertionError("no step was the last")


def test_a_cut_run_has_walked_its_whole_schedule_when_time_is_over():
    watch = Watch()
    seen = walk(Deadline(10_000, 100.0), watch, [10.0, *[1.0] * 200])
    # 10 s of compilation, then 90 steps of a second each, none past the deadline.
    assert len(seen) == 91 - 1 and watch.now <= 100
    assert seen == sorted(seen) and seen[0] == 1e-4
    assert seen[-1] == pytest.approx(1.0, abs=0.03)
    half = seen[len(seen) // 2]
    assert half == pytest.approx(0.5, abs=0.03)


def test_steps_lead_where_they_end_first():
    watch = Watch()
    deadline = Deadline(10, 1000.0)
    for step in range(1, 11):
        assert not deadline.begin(step, watch.now)
        watch.now += 1
    assert deadline.progress == 1.0


def test_one_long_evaluation_does_not_end_a_run():
    watch = Watch()
    durations = [5.0, *[1.0] * 10, 40.0, *[1.0] * 200]
    seen = walk(Deadline(10_000, 100.0), watch, durations)
    assert watch.now == pytest.approx(100, abs=2.5) and len(seen) > 50


def test_a_resumed_run_goes_on_at_its_place_in_time():
    watch = Watch()
    watch.now = 50.0  # what the process before had taken
    seen = walk(Deadline(10_000, 100.0), watch, [10.0, *[1.0] * 200], first=41)
    assert seen[0] == pytest.approx(0.5) and seen[1] >= 0.6
    assert seen[-1] == pytest.approx(1.0, abs=0.03)


def test_time_that_is_over_after_the_compilation_is_refused():
    deadline = Deadline(100, 10.0)
    deadline.begin(1, 0.0)
    with pytest.raises(ClaraError, match="'minutes': 10 s were left, and .* took 35 s"):
        deadline.begin(2, 35.0)
    part_of_more = Deadline(100, 10.0, whole=40.0)
    part_of_more.begin(1, 0.0)
    assert part_of_more.begin(2, 35.0)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_rate_by_time_is_the_rate_by_steps(schedule):
    config = OptimConfig(schedule=schedule, warmup_fraction=0.1)
    by_steps = make_schedule(config, 200)
    for done in (0, 5, 19, 20, 21, 100, 198, 199):
        expected = float(by_steps(jax.numpy.asarray(done)))
        assert float(rate_at(config, (done + 1) / 200)) == pytest.approx(expected)


def test_a_budget_gives_what_is_left_to_those_that_come(tmp_path):
    shares = {"scp": 2.0, "instruct": 1.0, "report": 1.0}
    budget = Budget(tmp_path, 10, shares)
    budget.note("mix", 120.0)
    assert budget.seconds("scp") == pytest.approx(480 * 2 / 4)
    budget.note("scp", 180.0)  # a minute less than it might have
    assert budget.seconds("instruct") == pytest.approx(150)
    # Another process goes on with what was used; parts are counted once.
    again = Budget(tmp_path, 10, shares)
    again.note("scp", 1.0)
    assert again.seconds("instruct") == pytest.approx(150)
    again.note("instruct", 1005.0)
    assert json.loads((tmp_path / "time.json").read_text())["instruct"] == 1005
    assert again.seconds("report") < 0 and again.limited


def test_a_step_takes_its_rate_from_the_clock():
    from clara_jax import testing
    from clara_jax.stages import make_loss
    from clara_jax.train import init_state, make_optimizer, make_train_step

    toy = testing.toy_network()
    config = OptimConfig(learning_rate=1e-2, weight_decay=0.1)
    schedule = make_schedule(config, 10)
    optimizer = make_optimizer(config, schedule)
    step = make_train_step(make_loss("text"), optimizer, schedule)
    step = jax.jit(step, compiler_options=AS_USERS_COMPILE)
    trainable = {"generator": toy.adapters["generator"]}
    frozen = {k: v for k, v in toy.adapters.items() if k != "generator"}
    batch = testing.random_batch("text")
    state = init_state(trainable, optimizer, jax.random.key(0))
    given = (state, toy.replace(adapters=frozen), batch)
    by_itself, metrics = step(*given)
    same, told = step(*given, metrics["lr"])
    assert float(told["lr"]) == float(metrics["lr"])
    jax.tree.map(np.testing.assert_array_equal, by_itself.trainable, same.trainable)
    still, _ = step(*given, np.float32(0))
    jax.tree.map(np.testing.assert_array_equal, still.trainable, state.trainable)
    # The count goes on, so that either may follow the other.
    counts = [s.opt_state for s in (by_itself, same, still)]
    assert [jax.tree.leaves(c)[-1].item() for c in counts] == [1, 1, 1]
