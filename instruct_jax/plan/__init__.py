"""Compiles the programs of a run for hardware that is not here: does it fit, and how fast can it
be?
"""
