"""What happened in a run: one self-contained page, its pictures, and plain sentences about them."""

from instruct_jax.report.findings import remarks
from instruct_jax.report.page import build
from instruct_jax.report.plots.png import write_pictures

__all__ = ["build", "remarks", "write_pictures"]
