"""A stage of a run as a Hugging Face folder: weights, config, tokenizer, generation config and a
model card.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from instruct_jax.chain import parameters
from instruct_jax.chain.context import Run, Stage
from instruct_jax.chain.graph import Place, order, resolve, uses
from instruct_jax.chain.read import load_run
from instruct_jax.chain.settings import BASE
from instruct_jax.chain.spec import NAME
from instruct_jax.chain.task import load_files, merged_data
from instruct_jax.data.tokenize import DEFAULT_TEMPLATE, MESSAGES
from instruct_jax.errors import DataError, RunError, require
from instruct_jax.huggingface.families import FAMILIES, Family, write_config
from instruct_jax.huggingface.peft import write_adapter
from instruct_jax.huggingface.weights import write_params
from instruct_jax.models.lora import fold_adapters
from instruct_jax.runtime.folders import as_started, read_note, require_local
from instruct_jax.runtime.hosts import barrier, is_main

logger = logging.getLogger(__name__)
BIASED = '''"""A reward model whose score has a bias: load it with trust_remote_code=True by
AutoModelForSequenceClassification.

Without trust_remote_code the same weights load as {base}, whose rewards are larger by the same
number for every text.
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
    model: str, out: Path, dtype: str, overrides: Sequence[str] = (), *, adapter: bool = False
) -> None:
    """Writes `out`, which must not exist; it appears whole or not at all.

    model: RUN:STAGE.  ConfigError or RunError for what cannot be exported.
    """
    run, place = _find(model, overrides)
    require_local(out, "--out")
    if out.exists():
        raise RunError(f"{out} exists; give another folder to --out, or remove it")
    with as_started(run.folder):
        _export(model, run, place, out, dtype, adapter=adapter)


def _export(model: str, run: Run, place: Place, out: Path, dtype: str, *, adapter: bool) -> None:
    stage = run.stage(str(place.stage))
    is_reward = stage.settings.leaves == "scalar"
    net = stage.network
    lora = net.spec.lora
    require(
        not adapter or (lora is not None and not is_reward),
        f"--adapter: {model} has no adapter that peft can hold; leave --adapter out",
    )
    shape = net.spec.model
    family = FAMILIES[write_config(shape)["model_type"]]
    rows, biased = shape.vocab_size, False
    partial = out.with_name(f"{out.name}.partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier("export begins")
    if is_reward:
        params = parameters.scalar(run, place).params
        rows = max(rows, net.pad + 1)  # torch looks PAD up
        head = params["head"]
        biased = float(head["bias"]) != 0.0
        backbone = fold_adapters(params["backbone"], lora)
        write_params(partial, family, shape, backbone, dtype=dtype, head=head, vocabulary=rows)
    else:
        params = parameters.policy(run, place).params
        if adapter:
            assert lora is not None
            root = net.spec.root
            base = root.model if root is not None else None
            write_adapter(partial, family, shape, lora, params, base)
        else:
            write_params(partial, family, shape, fold_adapters(params, lora), dtype=dtype)
    if is_main():
        if adapter:
            (partial / "README.md").write_text(_card(stage), encoding="utf-8")
        else:
            keys = write_config(shape) | {"vocab_size": rows}
            _write_rest(stage, family, partial, dtype, keys, biased)
        partial.rename(out)
    barrier("export")


def _find(model: str, overrides: Sequence[str]) -> tuple[Run, Place]:
    """RUN:STAGE, where the stage has left a model."""
    folder, _, name = model.rpartition(":")
    if Path(model, "config.yaml").is_file():
        folder, name = model, ""
    if not folder or not Path(folder, "config.yaml").is_file():
        raise RunError(
            f"{model} is no stage of a run; give RUN:STAGE, RUN being the folder that `out` names"
        )
    config = load_run(Path(folder) / "config.yaml", overrides)
    run = Run(config, Path(folder))
    names = []
    for other, stage in config.stages.items():
        if stage.leaves in ("policy", "scalar"):
            names.append(other)
    require(
        name in names,
        f"{model}: name a stage that leaves a model: {folder}:STAGE, one of {', '.join(names)}",
    )
    if not (run.folder / name / NAME).exists():
        raise RunError(f"{folder} has not finished the stage {name}; run it first")
    return run, Place(None, name)


def _write_rest(
    stage: Stage, family: Family, out: Path, dtype: str, keys: Any, biased: bool
) -> None:
    net = stage.network
    is_reward = stage.settings.leaves == "scalar"
    tok = net.tokenizer
    if tok.chat_template is None and _reads_messages(stage):
        tok.chat_template = DEFAULT_TEMPLATE
    pad = net.pad
    if not is_reward and pad >= keys["vocab_size"]:
        tok.pad_token = None  # ours alone: the model has no row for it
    ids = {
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    classes = [family.classes + family.causal]
    labels = {}
    if is_reward:
        classes = [f"{family.scalar}ForSequenceClassification"]
        labels = {"num_labels": 1}
    theirs: Any = AutoConfig.for_model(
        **keys | ids | labels | {"architectures": classes, "dtype": dtype}
    )
    if biased:
        theirs.auto_map = {"AutoModelForSequenceClassification": "reward_model.RewardModel"}
        (out / "reward_model.py").write_text(BIASED.format(base=classes[0]), encoding="utf-8")
    theirs.save_pretrained(out)
    tok.save_pretrained(out)
    if not is_reward:
        sampling = {"do_sample": True, **ids}
        if len(net.ends) > 1:
            sampling["eos_token_id"] = net.ends
        if tok.pad_token_id is None:
            sampling["pad_token_id"] = tok.eos_token_id
        text = json.dumps(sampling, indent=2) + "\n"
        (out / "generation_config.json").write_text(text, encoding="utf-8")
    (out / "README.md").write_text(_card(stage), encoding="utf-8")


def _reads_messages(stage: Stage) -> bool:
    """Are text prompts, or prompts of the records, messages?"""
    config = stage.run.config
    if config.text.template == MESSAGES:
        return True
    if config.data is None:
        return False
    try:
        records = load_files(merged_data(config.data, stage.settings.data))
    except DataError as error:
        logger.warning(
            "no chat template is exported: the tokenizer has none, and whether the records of the"
            " run are messages cannot be seen (%s)",
            error,
        )
        return False
    for kind in ("demonstrations", "rankings", "prompts"):
        if any(not isinstance(record["prompt"], str) for record in records[kind]):
            return True
    return False


def _card(stage: Stage) -> str:
    """The model card: what the model is, and from what it was made."""
    folder, base = stage.run.folder, stage.run.config.base
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["rlhf", "instruct-jax"]}
    if base and resolve(stage.run.config, BASE, BASE).model is not None:
        front["base_model"] = base
    text = stage.network.text
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    kind = "language model"
    if stage.settings.leaves == "scalar":
        kind = "reward model (num_labels=1, the score is read at the last token)"
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {folder.name}, stage {stage.name}",
            "",
            f"A {kind}, trained with instruct-jax at commit {about['commit']}.",
            f"A text prompt goes into the template {text.template!r}, a completion begins with"
            f" {text.completion_prefix!r} and ends with {stage.network.tokenizer.eos_token!r}.",
            "",
            "## Lineage",
            "",
            "| stage | kind | made from |",
            "|---|---|---|",
            *_lineage(stage),
            "",
            "## Config",
            "",
            "```yaml",
            yaml.safe_dump(config, sort_keys=False).strip(),
            "```",
            "",
        ]
    )


def _lineage(stage: Stage) -> list[str]:
    """A row for each finished stage of the run: what it uses, with the hash of that."""
    rows = []
    for name in order(stage.run.config):
        path = stage.run.folder / name / "done.json"
        if not path.exists():
            continue
        note = read_note(path)
        used = []
        for key, place in uses(stage.run.config, name).items():
            hashed = str(note["inputs"].get(f"uses.{key}", ""))
            _, _, digest = hashed.partition(":")
            used.append(f"{place} ({digest[:12]})")
        made_from = ", ".join(used) or "data alone"
        rows.append(f"| {name} | {note['kind']} | {made_from} |")
    return rows
