import pytest
from html_page import Page
from synthetic import CHAIN, make_run
from test_shapes_of_runs import DPO, TWO_REWARDS

from instruct_jax.report import build, lineage
from instruct_jax.report.run_data import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "quick", CHAIN, rows=2)


@pytest.fixture(scope="module")
def page(folder):
    return Page(build(folder).read_text(encoding="utf-8"))


def boxes(page: Page) -> dict[str, str]:
    """The links of the drawing: what they say -> where they lead."""
    links = {}
    for tag, attrs in page.tags:
        if tag == "a" and "aria-label" in attrs:
            links[attrs["aria-label"] or ""] = (attrs["href"] or "").removeprefix("#")
    return links


def test_each_stage_and_source_has_a_box_that_leads_to_its_details(page):
    links = boxes(page)
    assert "ppo_ptx, ppo · 5 min" in links and "sft, 1 min" in links
    assert "runs/quick:ppo, from outside" in links and "prompts, data" in links
    assert len(links) == 9 + 3
    tags = {attrs["id"]: tag for tag, attrs in page.tags if "id" in attrs}
    for name, target in links.items():
        is_stage = not name.endswith((", data", ", from outside"))
        assert tags[target] == ("article" if is_stage else "tr"), name


def test_the_details_name_sources_with_short_hashes(page):
    stages = page.sections["stages"]
    assert "start sft 5555555555" in stages  # what select is made from
    assert "data.prompts prompts dddddddddd" in stages
    assert "uses.reward" in stages and "accuracy_heldout_prompts" in stages
    assert "Hashes and outputs of the stages" in stages and "d" * 64 in stages


def test_the_drawing_is_told_in_words(folder):
    words = lineage.words(read_run(folder))
    assert words.startswith("pretrain starts from nothing. sft starts from pretrain and uses the")
    assert "ppo starts from select and uses reward and the data prompts." in words


def test_a_source_that_is_used_twice_is_one_box(tmp_path):
    page = Page(build(make_run(tmp_path / "run", DPO, rows=2)).read_text(encoding="utf-8"))
    assert sum("from outside" in label for label in boxes(page)) == 1
    assert "sft, evaluate" in page.sections["stages"]  # who uses it


def test_a_stage_stands_right_of_what_it_uses(tmp_path):
    run = read_run(make_run(tmp_path / "run", TWO_REWARDS, rows=1))
    columns = lineage.columns(run)
    for stage in run.stages.values():
        for use in lineage.uses_of(run, stage):
            assert columns[use.source] < columns[lineage.Source(stage.name, "stage")]
