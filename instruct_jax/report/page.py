"""report.html: one file that asks nothing of any host."""

from pathlib import Path

from instruct_jax.report import html
from instruct_jax.report.plots import style
from instruct_jax.report.run_data import read_run
from instruct_jax.report.sections import abstract, sections
from instruct_jax.report.text import moment
from instruct_jax.runtime.folders import write_atomic


def build(folder: Path) -> Path:
    """Writes folder/report.html from what the run folder holds, finished or not."""
    run = read_run(folder)
    with style.styled():
        parts = sections(run)
    started = moment(run.about.get("started", "unknown"))
    path = folder / "report.html"
    page = html.page(
        command="report",
        name=run.name,
        started=started,
        abstract=abstract(run),
        sections=parts,
    )
    write_atomic(path, page)
    return path
