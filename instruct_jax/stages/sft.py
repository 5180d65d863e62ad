"""Supervised fine-tuning on demonstrations (paper 3.5, C.1).  The loss is `pretrain.make_loss`;
what differs is which tokens weigh.

Dropout, cosine to 10 % and 16 epochs are the paper's SFT baselines; C.3 makes the PPO start with 2
epochs and 10 % pretraining data.
"""

import dataclasses

from instruct_jax.config import OptimizerConfig
from instruct_jax.errors import require
from instruct_jax.stages.pretrain import check_batch


@dataclasses.dataclass(frozen=True)
class SftConfig:
    epochs: int = 16
    batch: int = 32  # rows, all hosts together
    length: int = 2048  # tokens per row; several demonstrations are packed into one
    micro_batches: int = 1
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=9.65e-6)
    dropout: float = 0.2  # on residual branches
    loss_on_prompt: bool = False  # the paper does not say; the completion (and eos) always counts
    pretrain_mix: float = 0.0  # share of pretraining rows in each batch (C.3: 0.1)

    def __post_init__(self):
        require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1")
        require(self.length >= 2, f"length={self.length} must be at least 2")
        check_batch(self.batch, self.micro_batches)
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        require(0 <= self.pretrain_mix < 1, f"pretrain_mix={self.pretrain_mix} must lie in [0, 1)")
