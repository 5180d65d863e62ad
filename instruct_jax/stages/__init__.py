"""One stage, one file: its config and its pure functions."""
