"""report.html: one file that asks nothing of any host."""

import importlib.resources
import string
from pathlib import Path

from instruct_jax.report import html
from instruct_jax.report.plots import style
from instruct_jax.report.run_data import read_run
from instruct_jax.report.sections import SECTIONS, abstract
from instruct_jax.report.text import escape
from instruct_jax.runtime.folders import write_atomic


def build(folder: Path) -> Path:
    """Writes folder/report.html from what the run folder holds, finished or not."""
    run = read_run(folder)
    with style.styled():
        sections = [html.section(anchor, title, part(run)) for anchor, title, part in SECTIONS]
    page = string.Template(
        importlib.resources.files("instruct_jax.report")
        .joinpath("page.html")
        .read_text(encoding="utf-8")
    ).substitute(
        name=escape(run.name),
        started=escape(str(run.about.get("started", "unknown"))[:16].replace("T", " ")),
        abstract=escape(abstract(run)),
        contents="".join(
            f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title, _ in SECTIONS
        ),
        sections="\n".join(sections),
    )
    path = folder / "report.html"
    write_atomic(path, page)
    return path
