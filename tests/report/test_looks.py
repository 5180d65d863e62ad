from synthetic import CHAIN, make_run
from test_shapes_of_runs import DPO, SFT_ALONE, TWO_REWARDS

from instruct_jax.report.evaluations import evaluations
from instruct_jax.report.looks import BLUE, GREY, look, look_in
from instruct_jax.report.run_data import read_run


def test_base_and_baseline_always_look_the_same(tmp_path):
    for name, stages in {"chain": CHAIN, "dpo": DPO}.items():
        run = read_run(make_run(tmp_path / name, stages, rows=1))
        (evaluation,) = evaluations(run)
        assert look_in(evaluation, "base").color == GREY
        assert look_in(evaluation, evaluation.baseline).color == BLUE
        assert look_in(evaluation, evaluation.control).hollow


def test_no_two_models_of_a_picture_look_alike(tmp_path):
    run = read_run(make_run(tmp_path / "run", TWO_REWARDS, rows=1))
    (evaluation,) = evaluations(run)
    models = [*evaluation.stage.models, "best_of_n", evaluation.control]
    assert len({look_in(evaluation, model) for model in models}) == len(models)
    assert len({look(run, name) for name in ("reward", "reward_2")}) == 2


def test_a_look_stays_while_the_run_goes_on(tmp_path):
    finished = read_run(make_run(tmp_path / "a", CHAIN, rows=1))
    running = read_run(make_run(tmp_path / "b", CHAIN, rows=1, unfinished=["evaluate", "ppo_ptx"]))
    for name in CHAIN:
        if name != "report":
            assert look(finished, name) == look(running, name)


def test_the_first_policy_counts_as_the_baseline_where_none_is_named(tmp_path):
    run = read_run(make_run(tmp_path / "run", SFT_ALONE, rows=1))
    assert look(run, "sft").color == BLUE
