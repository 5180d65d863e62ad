"""The table of the kinds of stages.  A new algorithm is its own files and one line here."""

from instruct_jax.chain import (
    compare,
    cross_validation,
    dpo,
    evaluate,
    import_model,
    ppo,
    pretrain,
    reward,
    select,
    sft,
)
from instruct_jax.chain.kind import Kind

KINDS: dict[str, Kind] = {
    "pretrain": pretrain.KIND,
    "import": import_model.KIND,
    "sft": sft.KIND,
    "compare": compare.KIND,
    "reward": reward.KIND,
    "cross_validation": cross_validation.KIND,
    "select": select.KIND,
    "dpo": dpo.KIND,
    "ppo": ppo.KIND,
    "evaluate": evaluate.KIND,
}
