"""The rounds of feedback as the configs of ordinary runs, one for each round."""

import dataclasses
from pathlib import Path

from instruct_jax.chain.settings import RunConfig, StartConfig


def rounds_of(config: RunConfig) -> list[RunConfig]:
    """Round 1 is the run itself, in its own folder.  Round r begins with its pretrained and SFT
    models, in OUT/round_r: it ranks samples of the round before it and of the SFT model, learns
    from the rankings of all rounds, and is measured beside the policies of all rounds.
    """
    rounds = [dataclasses.replace(config, rounds=None)]
    stages = ("pretrain", *config.sfts)
    if (cfg := config.rounds) is None:
        return rounds
    who = {"judge": cfg.judge, "people": cfg.people} if cfg.judge or cfg.people else {}
    for number in range(2, cfg.count + 1):
        before = rounds[-1].out
        models = {f"{before}:{stage}": share for stage, share in cfg.shares.items()}
        policies = {
            f"{stage}_round_{i}": f"{r.out}:{stage}"
            for i, r in enumerate(rounds, 1)
            for stage in config.rl
        }
        rounds.append(
            dataclasses.replace(
                rounds[0],
                out=str(Path(config.out) / f"round_{number}"),
                round=number,
                start=StartConfig(config.out, stages),
                compare=dataclasses.replace(config.compare, models=models, earlier=before, **who),
                evaluation=dataclasses.replace(
                    config.evaluation, others=config.evaluation.others | policies
                ),
            )
        )
    return rounds
