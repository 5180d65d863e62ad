"""The page of a run: one self-contained file with its pictures, and plain sentences about them."""

from instruct_jax.report.page import build

__all__ = ["build"]
