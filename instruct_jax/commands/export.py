"""A stage of a run as a Hugging Face folder: weights, config, tokenizer, generation config and a
model card.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.task import tokenizer_only
from instruct_jax.chain.workspace import Workspace
from instruct_jax.errors import RunError, require
from instruct_jax.huggingface.families import FAMILIES, Family, write_config
from instruct_jax.huggingface.peft import write_adapter
from instruct_jax.huggingface.weights import write_params
from instruct_jax.models.lora import merged
from instruct_jax.runtime.folders import read_note
from instruct_jax.runtime.hosts import barrier, is_main

BIASED = '''"""A reward model whose score has a bias: load it with AutoModelForSequenceClassification and trust_remote_code=True.

Without trust_remote_code the same weights load as {base}, whose rewards are larger by the same number for every text.
"""

from torch import nn
from transformers import {base}


class RewardModel({base}):
    def __init__(self, config):
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=True)
        self.post_init()
'''


def export(
    config: RunConfig, run: Path, stage: str, out: Path, dtype: str, *, adapter: bool = False
) -> None:
    """Writes `out`, which must not exist; it appears whole or not at all.

    ConfigError or RunError for what cannot be exported.
    """
    kinds = ("pretrain", *config.sfts, "reward", *config.rl)
    require(
        stage in kinds, f"--stage {stage} is no model of this run; use one of {', '.join(kinds)}"
    )
    if not (run / stage / "done.json").exists():
        raise RunError(f"{run} has not finished the stage {stage}; run it first")
    require(
        not adapter or config.lora is not None,
        "--adapter: this run trained all weights, it has no lora; leave --adapter out",
    )
    require(
        not adapter or stage not in ("reward", "pretrain"),
        f"--adapter: stage {stage} has no adapter that peft can hold; leave it out",
    )
    if out.exists():
        raise RunError(f"{out} exists; give another folder to --out, or remove it")
    ws = Workspace(config, run, tokenizer_only(config, run))
    model = ws.scalar.lm.config if stage == "reward" else config.model
    family = FAMILIES[write_config(model)["model_type"]]
    partial = out.with_name(f"{out.name}.partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier("export begins")
    if adapter:
        assert config.lora is not None
        write_adapter(partial, family, model, config.lora, ws.policy_of(stage), config.base)
        rows, biased = model.vocab_size, False
    elif stage == "reward":
        params = ws.reward_params()
        rows = max(model.vocab_size, ws.pad + 1)  # torch looks PAD up
        head, biased = params["head"], float(params["head"]["bias"]) != 0.0
        write_params(
            partial,
            family,
            model,
            merged(params["backbone"], config.lora),
            dtype=dtype,
            head=head,
            vocabulary=rows,
        )
    else:
        rows, biased = model.vocab_size, False
        write_params(partial, family, model, merged(ws.policy_of(stage), config.lora), dtype=dtype)
    if is_main():
        if adapter:
            (partial / "README.md").write_text(_card(ws, stage), encoding="utf-8")
        else:
            _write_rest(
                ws,
                family,
                partial,
                stage,
                dtype,
                write_config(model) | {"vocab_size": rows},
                biased,
            )
        partial.rename(out)
    barrier("export")


def _write_rest(
    ws: Workspace, family: Family, out: Path, stage: str, dtype: str, keys: Any, biased: bool
) -> None:
    tok = ws.task.tokenizer
    if stage != "reward" and ws.pad >= keys["vocab_size"]:
        tok.pad_token = None  # ours alone: the model has no row for it
    ids = {
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    classes, labels = [family.classes + family.causal], {}
    if stage == "reward":
        classes, labels = [f"{family.scalar}ForSequenceClassification"], {"num_labels": 1}
    theirs: Any = AutoConfig.for_model(
        **keys | ids | labels | {"architectures": classes, "dtype": dtype}
    )
    if biased:
        theirs.auto_map = {"AutoModelForSequenceClassification": "reward_model.RewardModel"}
        (out / "reward_model.py").write_text(BIASED.format(base=classes[0]), encoding="utf-8")
    theirs.save_pretrained(out)
    tok.save_pretrained(out)
    if stage != "reward":
        sampling = {
            "do_sample": True,
            **ids,
            "pad_token_id": ws.eos if tok.pad_token_id is None else ws.pad,
        }
        (out / "generation_config.json").write_text(
            json.dumps(sampling, indent=2) + "\n", encoding="utf-8"
        )
    (out / "README.md").write_text(_card(ws, stage), encoding="utf-8")


def _card(ws: Workspace, stage: str) -> str:
    """The model card: what the model is, and from what it was made."""
    run = json.loads((ws.folder / "run.json").read_text(encoding="utf-8"))
    front = {"library_name": "transformers", "tags": ["rlhf", "instruct-jax"]} | (
        {"base_model": ws.config.base} if ws.config.base else {}
    )
    lineage = []
    for name in ws.config.stages:
        if (path := ws.folder / name / "done.json").exists():
            inputs = read_note(path)["inputs"]
            made_from = [
                f"{need} {digest.partition(':')[2][:12]}" for need, digest in inputs.items()
            ]
            lineage.append(f"| {name} | {', '.join(made_from) or '-'} |")
    text = ws.config.text
    config = yaml.safe_dump(
        yaml.safe_load((ws.folder / "config.yaml").read_text(encoding="utf-8")), sort_keys=False
    )
    kind = (
        "reward model (num_labels=1, the score is read at the last token)"
        if stage == "reward"
        else "language model"
    )
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {ws.folder.name}, stage {stage}",
            "",
            f"A {kind}, trained with instruct-jax at commit {run['commit']}.",
            (
                f"A text prompt goes into the template {text.template!r}, a completion begins with"
                f" {text.completion_prefix!r} and ends with {ws.task.tokenizer.eos_token!r}."
            ),
            "",
            "## Lineage",
            "",
            "| stage | made from (sha256 of its done.json) |",
            "|---|---|",
            *lineage,
            "",
            "## Config",
            "",
            "```yaml",
            config.strip(),
            "```",
            "",
        ]
    )
