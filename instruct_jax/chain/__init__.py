"""The wiring of the chain: settings, tasks, a workspace of compiled functions, and one runner per
stage.
"""
