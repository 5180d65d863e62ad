"""Effects: the loop that runs every stage, checkpoints, metrics, progress and the run folder."""
