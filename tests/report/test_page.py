import json
import re
import time

import pytest
from html_page import Page
from synthetic import CHAIN, HOSTILE, QUALITY, make_run, win

from instruct_jax.report import build
from instruct_jax.text import plain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "quick")


@pytest.fixture(scope="module")
def text(run):
    return build(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def changed(run, change):
    """The page after a change of evaluation.json."""
    path = run / "evaluate" / "evaluation.json"
    numbers = json.loads(path.read_text())
    change(numbers)
    path.write_text(json.dumps(numbers))
    return Page(build(run).read_text(encoding="utf-8"))


def test_every_section_has_its_numbers(page):
    expected = {
        "header": [
            "quick",
            "Preferred to select on 512 held-out prompts, judged by the gold score: ppo 66\u00a0%",
            "The best untuned model, prompted base, is preferred on 24\u00a0%",
            "27 min on 1 x cpu",
        ],
        "numbers": [
            "ppo_ptx",
            "0.66 · 0.63 to 0.69",
            "1.420",
            "Reward-model loss, nats per pair",
            "72.4\u00a0%",
            "2.7 GiB",
            "pretrain: copy probes, echo",
        ],
        "findings": ["22 of 22: holds", "ppo is preferred to select"],
        "lineage": ["demonstrations", "from outside", "2 min"],
        "preference": ["select again (control)", "temperature 0.7", "summarization"],
        "optimization": ["n=16", "square-root", "Reward and score over KL"],
        "tax": ["nats per token", "1.340", "pretraining text in ppo_ptx"],
        "reward-model": ["labelers agree with each other: 0.730", "ada"],
        "rankings": ["runs/quick:ppo", "52.5\u00a0%", "74.5\u00a0%"],
        "labelers": ["72.5\u00a0% ± 0.5", "68.0\u00a0% ± 1.0", "bob, cid"],
        "style": ["Replies with a rude word", "13.5\u00a0%"],
        "samples": ["the fox went to the river", "gold 0.80 · reward −0.31", "3 more prompts"],
        "training": [
            "Pretraining loss",
            "Reward-model loss",
            "KL from the start",
            "More curves of ppo",
            "Value loss",
        ],
        "stages": ["select", "0.21 s a step", "settings.epochs", "1,234.00", "6" * 64],
        "provenance": ["width: 128", "0.10.2"],
    }
    assert set(page.sections) - {"header"} == set(expected) - {"header"}
    for section, parts in expected.items():
        for part in parts:
            assert part in page.sections[section], (section, part)
    for stage in CHAIN:
        assert (stage in page.sections["stages"]) == (stage != "report")


def test_every_picture_has_an_alt_text_with_numbers(page):
    assert len(page.pictures) == 23
    for alt in page.pictures:
        assert re.search(r"\d", alt) and len(alt) > 30, alt
    means = "at temperature 1.0 base 0.14, base, prompted 0.24, select again (control) 0.51"
    assert any(means in alt for alt in page.pictures)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_asks_nothing_of_any_host(text, page):
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "srcset", "xlink:href", "action", "data", "poster"):
                assert value and value.startswith("#"), (tag, name, value)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    policy = [
        attrs["content"]
        for tag, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy and policy[0].startswith("default-src 'none'")


def test_links_and_clips_lead_somewhere(page):
    links = page.links()
    assert len(links) > 50 and set(links) <= set(page.ids)


def test_hostile_text_is_inert_and_still_readable(text, page):
    assert "<script" not in text and "<img" not in text
    unseen = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    assert not re.search(unseen, text)
    assert plain(HOSTILE) in page.sections["samples"]
    assert plain("a\u202eb\x1bc\ud800d\n") == "a\\u202eb\\u001bc\\ud800d\n"


def test_hostile_names_are_inert_in_tables_and_pictures(tmp_path):
    run = make_run(tmp_path / "a <script>alert(1)</script> & $x \u202e", rows=3)
    path = run / "evaluate" / "evaluation.json"
    numbers = json.loads(path.read_text())
    numbers["by_use_case"][HOSTILE] = numbers["by_use_case"].pop("chat")
    for table in (numbers["style"], numbers["pretrain_nll"], numbers["win_rate"]["1.0"]):
        table["$\\frac{ </text><script>猫"] = table["ppo"]
    path.write_text(json.dumps(numbers))
    path = run / "reward" / "done.json"
    done = json.loads(path.read_text())
    done["output"]["per_labeler"][HOSTILE] = 0.5
    path.write_text(json.dumps(done))
    text = build(run).read_text(encoding="utf-8")
    assert "<script" not in text and "\u202e" not in text
    assert "猫" in Page(text).sections["preference"]


def test_hostile_stages_are_inert(tmp_path):
    name = '"><script>alert(1)</script>\u202e'
    start = "runs/<script>:x\x00"
    stages = {
        "_sft": {"kind": "sft", "uses": {"start": start}},
        "ppo{{ 7 * 7 }}": {"kind": "ppo", "uses": {"start": "_sft", "reward": name}},
    }
    run = make_run(tmp_path / "odd", stages, rows=3)
    text = build(run).read_text(encoding="utf-8")
    assert "<script" not in text and "\u202e" not in text and "\x00" not in text
    page = Page(text)
    assert "ppo{{ 7 * 7 }}" in page.sections["lineage"]
    assert set(page.links()) <= set(page.ids) and len(page.ids) == len(set(page.ids))


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    (tmp_path / "new").mkdir()
    page = Page(build(tmp_path / "new").read_text(encoding="utf-8"))
    assert not page.pictures
    assert set(page.sections) == {"header", "provenance"}
    assert "has not finished a stage yet" in page.sections["header"]
    assert page.sections["provenance"].count("Not in this run:") == 2


def test_a_run_that_only_has_its_first_stages(tmp_path):
    later = [name for name in CHAIN if name not in ("pretrain", "sft")]
    run = make_run(tmp_path / "half", rows=1, unfinished=later)
    for name in ("summary.json", "config.yaml", "run.json"):
        (run / name).unlink()
    page = Page(build(run).read_text(encoding="utf-8"))
    assert "Not finished: compare, reward, cross_validation" in page.sections["header"]
    assert "SFT loss of sft: from" in page.sections["header"]
    assert len(page.pictures) == 3  # two losses and the time
    assert page.sections["lineage"].count("not finished") == 7
    assert set(page.sections) == {
        "header",
        "numbers",
        "lineage",
        "training",
        "stages",
        "provenance",
    }


def test_without_a_gold_judge_the_page_says_who_judges(tmp_path):
    run = make_run(tmp_path / "own", rows=2)

    def own_judge(numbers):
        numbers["judge"] = "reward model"
        for style in numbers["style"].values():
            del style["rude"], style["fluff"]

    page = changed(run, own_judge)
    assert "There is no gold score here" in page.sections["preference"]
    assert "judged by the reward model" in page.sections["header"]
    assert "Replies with a rude word" not in page.sections["style"]
    assert "Tokens per reply" in page.sections["style"]


def test_without_a_judge_there_are_no_win_rates(tmp_path):
    run = make_run(tmp_path / "none", rows=30)

    def no_judge(numbers):
        numbers |= {"judge": None, "win_rate": {}, "gold_score": {}, "by_use_case": {}}
        numbers |= {"best_of_n": [], "over_optimization": {}, "win_rate_vs": {}}
        for sample in numbers["samples"]:
            for completion in sample["completions"].values():
                del completion["gold"], completion["reward"]

    page = changed(run, no_judge)
    assert "preference" not in page.sections
    assert "KL to select, nats" in page.sections["numbers"]
    assert "wins against" not in page.sections["numbers"]
    assert "gold" not in page.sections["numbers"] + page.sections["samples"]
    assert "1.340" in page.sections["tax"] and "the fox went" in page.sections["samples"]
    assert "Reward-model score of the rollouts of ppo: from" in page.sections["header"]


def test_a_failed_control_is_said_first(tmp_path, page):
    run = make_run(tmp_path / "odd", rows=1)
    odd = changed(run, lambda n: n["win_rate"]["1.0"].update(select_control=win(0.56)))
    assert "Beware" in odd.sections["header"] and "Beware" not in page.sections["header"]


def test_prompts_may_be_messages_and_replies_empty(tmp_path):
    run = make_run(tmp_path / "chat", rows=2)
    sample = {
        "prompt": [{"role": "user", "content": "hello there"}],
        "completions": {"select": {"text": "", "reward": 0.5}},
    }
    samples = changed(run, lambda n: n.update(samples=[sample])).sections["samples"]
    for part in ("user: hello there", "(empty)", "reward 0.50"):
        assert part in samples
    assert "gold" not in samples


def test_a_config_that_cannot_be_read_is_shown_all_the_same(tmp_path):
    run = make_run(tmp_path / "torn", rows=2)
    (run / "config.yaml").write_text("stages: [unclosed")
    page = Page(build(run).read_text(encoding="utf-8"))
    assert "[unclosed" in page.sections["provenance"]


def test_building_is_quick_and_repeatable(run, text):
    started = time.process_time()
    assert build(run).read_text(encoding="utf-8") == text
    assert time.process_time() - started < 6


def test_all_models_are_in_the_samples(page):
    for model in ("base, prompted", "best of n", *(m for m in QUALITY if m in CHAIN)):
        assert model in page.sections["samples"]
