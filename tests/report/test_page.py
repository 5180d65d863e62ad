import json
import re
import time
from html.parser import HTMLParser

import pytest
from synthetic import HOSTILE, MODELS, STAGES, make_run, win

from instruct_jax.report import build
from instruct_jax.report.text import model_name, plain

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads; keeps tags, attributes, ids and the visible text of each
    section.
    """

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.section = "header"
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.sections[self.section] = self.sections.get(self.section, "") + data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "quick")


@pytest.fixture(scope="module")
def text(run):
    return build(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def pictures(page: Page) -> list[str]:
    return [attrs.get("aria-label") or "" for tag, attrs in page.tags if tag == "svg"]


def test_every_section_has_its_numbers(page):
    expected = {
        "header": ["quick", "66\u00a0%", "27 min"],
        "numbers": [
            "PPO-ptx",
            "0.66 · 0.63 to 0.69",
            "1.420",
            "72.4\u00a0%",
            "2.7 GiB",
            "copy probes, echo",
        ],
        "remarks": ["20 of 20: holds", "PPO is preferred to SFT"],
        "preference": ["SFT again (control)", "temperature 0.7", "summarization"],
        "optimisation": ["n=16", "square-root", "Reward and score over KL"],
        "tax": ["nats per token", "1.340"],
        "reward-model": ["labelers agree with each other: 0.730", "ada"],
        "rankings": ["runs/quick:ppo", "52.5\u00a0%", "74.5\u00a0%"],
        "labelers": ["72.5\u00a0% ± 0.5", "68.0\u00a0% ± 1.0", "bob, cid"],
        "manners": ["Replies with a rude word", "14.0\u00a0%"],
        "samples": ["the fox went to the river", "gold 0.80 · reward −0.31", "3 more prompts"],
        "training": [
            "Pretraining loss",
            "Reward-model accuracy",
            "KL from the SFT model",
            "Entropy",
        ],
        "provenance": [
            "select 6666666666",
            "0.21 s a step",
            "1,234.00",
            "width: 128",
            "0.10.2",
            "6" * 64,
        ],
    }
    assert set(page.sections) >= set(expected)
    for section, parts in expected.items():
        for part in parts:
            assert part in page.sections[section], (section, part)
    for stage in STAGES:
        assert stage in page.sections["provenance"]
    for model in MODELS:
        assert model_name(model) in page.sections["samples"]


def test_every_picture_has_an_alt_text_with_numbers(page):
    alts = pictures(page)
    assert len(alts) == 28
    assert all(re.search(r"\d", alt) and len(alt) > 30 for alt in alts), alts
    assert any("at temperature 1.0 base 0.14, base, prompted 0.24, SFT 0.50" in alt for alt in alts)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_asks_nothing_of_any_host(text, page):
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form"), (
            tag
        )
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


def test_links_and_clips_lead_somewhere(text, page):
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    targets = [
        v[1:] for _, attrs in page.tags for k, v in attrs.items() if k.endswith("href") and v
    ] + re.findall(r"url\(#([^)]*)\)", text)
    assert targets and set(targets) <= ids


def test_hostile_text_is_inert_and_still_readable(text, page):
    assert "<script" not in text and "<img" not in text
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )
    assert plain(HOSTILE) in page.sections["samples"]
    assert plain("a\u202eb\x1bc\ud800d\n") == "a\\u202eb\\u001bc\\ud800d\n"


def test_hostile_names_are_inert_in_tables_and_pictures(tmp_path):
    run = make_run(tmp_path / "a <script>alert(1)</script> & $x \u202e", rows=3)
    path = run / "evaluate" / "evaluation.json"
    found = json.loads(path.read_text())
    found["by_use_case"][HOSTILE] = found["by_use_case"].pop("chat")
    found["reward_model"]["per_labeler"][HOSTILE] = 0.5
    for table in (found["style"], found["pretrain_nll"], found["win_rate_vs_sft"]["1.0"]):
        table["$\\frac{ </text><script>猫"] = table["ppo"]
    path.write_text(json.dumps(found))
    text = build(run).read_text(encoding="utf-8")
    assert "<script" not in text and "\u202e" not in text
    assert "猫" in Page(text).sections["preference"]


def test_what_is_missing_is_said_and_nothing_fails(tmp_path):
    (tmp_path / "new").mkdir()
    page = Page(build(tmp_path / "new").read_text(encoding="utf-8"))
    assert not pictures(page)
    for section in (
        "numbers",
        "remarks",
        "preference",
        "optimisation",
        "tax",
        "reward-model",
        "manners",
        "samples",
        "training",
        "provenance",
    ):
        assert "Not in this run:" in page.sections[section], section


def test_a_run_that_only_has_its_first_stages(tmp_path):
    run = make_run(tmp_path / "half", rows=1)
    for stage in ("reward", "ppo", "ppo_ptx"):
        (run / stage / "metrics.jsonl").unlink()
    for name in ("summary.json", "evaluate/evaluation.json", "config.yaml", "run.json"):
        (run / name).unlink()
    page = Page(build(run).read_text(encoding="utf-8"))
    assert "training curves of reward model, PPO and PPO-ptx" in page.sections["training"]
    assert len(pictures(page)) == 3  # two losses and the time


def test_without_a_gold_judge_the_page_says_who_judges(tmp_path):
    run = make_run(tmp_path / "own", rows=2)
    path = run / "evaluate" / "evaluation.json"
    found = json.loads(path.read_text()) | {"judge": "reward model"}
    for manners in found["style"].values():
        del manners["rude"], manners["fluff"]
    found["reward_model"].pop("accuracy_gold")
    path.write_text(json.dumps(found))
    page = Page(build(run).read_text(encoding="utf-8"))
    assert (
        "no gold judge" in page.sections["preference"]
        and "judged by the reward model itself" in page.sections["header"]
    )
    assert (
        "Replies with a rude word" not in page.sections["manners"]
        and "Tokens per reply" in page.sections["manners"]
    )


def test_a_failed_control_is_said_first(tmp_path, page):
    run = make_run(tmp_path / "odd", rows=1)
    path = run / "evaluate" / "evaluation.json"
    found = json.loads(path.read_text())
    found["win_rate_vs_sft"]["1.0"]["sft_control"] = win(0.56)
    path.write_text(json.dumps(found))
    assert (
        "Beware" in Page(build(run).read_text(encoding="utf-8")).sections["header"]
        and "Beware" not in page.sections["header"]
    )


def test_prompts_may_be_messages_and_replies_empty(tmp_path):
    run = make_run(tmp_path / "chat", rows=2)
    path = run / "evaluate" / "evaluation.json"
    found = json.loads(path.read_text())
    found["samples"] = [
        {
            "prompt": [{"role": "user", "content": "hello there"}],
            "completions": {"sft": {"text": "", "reward": 0.5}},
        }
    ]
    path.write_text(json.dumps(found))
    samples = Page(build(run).read_text(encoding="utf-8")).sections["samples"]
    assert (
        "user: hello there" in samples
        and "(empty)" in samples
        and "reward 0.50" in samples
        and "gold" not in samples
    )


def test_building_is_quick_and_repeatable(run, text):
    started = time.process_time()
    assert build(run).read_text(encoding="utf-8") == text
    assert time.process_time() - started < 6
