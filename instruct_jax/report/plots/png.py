"""Every picture of a run, and the folder of PNG files that documents show."""

from collections.abc import Callable
from pathlib import Path

from instruct_jax.report.plots import evaluation as comparisons
from instruct_jax.report.plots import over_optimization as optimisation
from instruct_jax.report.plots import style as canvas
from instruct_jax.report.plots import training as curves
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.run_data import Run, read_run

EVALUATION: tuple[Callable[[Run], Picture | None], ...] = (
    comparisons.win_rates,
    comparisons.use_cases,
    curves.frontier,
    comparisons.alignment_tax,
    comparisons.accuracy,
    comparisons.calibration,
    comparisons.score_by_length,
    comparisons.best_of_n,
    optimisation.over_optimisation,
    comparisons.seconds,
)


def pictures(run: Run) -> list[Picture]:
    """Those for which the run has numbers; call it inside `canvas.styled()`."""
    drawn = [draw(run) for draw in EVALUATION]
    return (
        [p for p in drawn if p]
        + comparisons.style(run)
        + curves.training(run, curves.SUPERVISED + curves.MAIN + curves.MORE)
    )


def write_pictures(folder: Path, out: Path) -> list[Path]:
    """Writes out/NAME.png for every picture of the run folder; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with canvas.styled():
        for picture in pictures(read_run(folder)):
            paths.append(out / f"{picture.name}.png")
            canvas.write_png(picture, paths[-1])
    return paths
