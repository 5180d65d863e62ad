"""What happened in a run: one self-contained page, its pictures, and plain sentences about them."""

from instruct_jax.report.build import build
from instruct_jax.report.figures import write_pictures
from instruct_jax.report.findings import remarks

__all__ = ["build", "remarks", "write_pictures"]
