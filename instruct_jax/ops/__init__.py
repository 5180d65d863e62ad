"""The maths of the pipeline: pure functions on arrays, each with its formula, its shapes and its
source.
"""
