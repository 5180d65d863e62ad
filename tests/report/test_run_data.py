from synthetic import CHAIN, make_run

from instruct_jax.report.run_data import anchors, read_run


def test_series_leaves_out_rows_without_the_metric_and_torn_or_infinite_ones(tmp_path):
    folder = make_run(tmp_path / "run", {"sft": {"kind": "sft"}}, rows=1)
    rows = (
        '{"step": 1, "sft/nll": 2.0}\n{"step": 2}\n{"step": 3, "sft/nll": NaN}\n'
        '{"step": 4, "sft/nll": 1.0}\n{"step": 5, "sf'
    )
    (folder / "sft" / "metrics.jsonl").write_text(rows)
    stage = read_run(folder).stages["sft"]
    assert stage.series("sft/nll") == ([1, 4], [2.0, 1.0])
    assert stage.series("ppo/kl") == ([], [])


def test_stages_come_in_the_order_of_the_graph_without_the_page_itself(tmp_path):
    run = read_run(make_run(tmp_path / "run", rows=1))
    assert [*run.stages, "report"] == list(CHAIN)
    assert run.starts("ppo_ptx") == ["select", "sft", "pretrain"]
    assert run.stages["ppo_ptx"].settings["ptx_coef"] == 27.8
    ppo = dict(run.by_kind())["ppo"]
    assert [stage.name for stage in ppo] == ["ppo", "ppo_ptx"]


def test_anchors_are_different_and_need_no_escaping():
    names = ["ppo_ptx", "a b", "a-b", "<b>", "猫", "犬"]
    ids = list(anchors("of", names).values())
    assert ids[0] == "of-ppo_ptx" and len(set(ids)) == len(names)
    assert all(anchor.isascii() and " " not in anchor for anchor in ids)
