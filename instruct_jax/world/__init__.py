"""The embedded default task: a small world of 48 facts, its corpus, instructions, gold scores,
demonstrations and simulated labelers.
"""
