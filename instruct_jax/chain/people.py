"""Rankings by people: samples go to the store of the labeling page, and the run waits until enough
answers are in.
"""

import contextlib
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator

from instruct_jax.chain.settings import PeopleConfig
from instruct_jax.chain.task import Rankings
from instruct_jax.data.schemas import Record
from instruct_jax.errors import ConfigError, RunError
from instruct_jax.feedback import agreement, store
from instruct_jax.feedback.tasks import LabelTask, task
from instruct_jax.runtime.hosts import is_multihost
from instruct_jax.runtime.progress import StageProgress

POLL = 2.0  # seconds between two looks at the store


def ranked_by_people(cfg: PeopleConfig, samples: list[Record], held_out: list[Record]) -> Rankings:
    """The answers to these samples, once enough are in.  Screened labelers make the training data,
    and are measured on held-out prompts beside those labelers that are held out.  Stopped while it
    waits, the same command waits on: answers are in the store.
    """
    if is_multihost():
        raise ConfigError(
            "people waits for people, which many hosts should not do: run the stages up to"
            " compare on one host"
        )
    asked = {"train": _tasks(samples), "held out": _tasks(held_out)}
    tasks: list[LabelTask] = []
    ids: dict[str, set[str]] = {}
    rows: dict[str, tuple[str, Record]] = {}
    for group, part in asked.items():
        ids[group] = set()
        for of, row in part:
            tasks.append(of)
            ids[group].add(of.id)
            rows[of.id] = (group, row)
    if not asked["train"]:
        raise RunError(
            f"of {len(samples)} samples none has two replies that differ, so there is nothing to"
            " rank; train the policy further"
        )
    with contextlib.closing(store.create_store(cfg.store)) as connection:
        store.add_tasks(connection, tasks)
        with _page(cfg) as page:
            _wait(connection, ids, cfg.min_ranked_share, page)
        found = []
        for answer in store.answers(connection):
            if answer.task_id in rows and answer.ranks is not None:
                found.append(answer)
    train = []
    held_out_prompts = []
    held_out_labelers = []
    for answer in found:
        group, row = rows[answer.task_id]
        record = _labeled(row, answer)
        if group == "held out" and answer.held_out:
            held_out_labelers.append(record)
        elif group == "held out":
            held_out_prompts.append(record)
        elif not answer.held_out:
            train.append(record)
    agreed = agreement.by_group(found)["training"]
    return Rankings(
        train,
        held_out_prompts,
        held_out_labelers,
        agreement=agreed.mean if agreed.pairs else None,
    )


def _tasks(samples: list[Record]) -> list[tuple[LabelTask, Record]]:
    """The task of each sample with at least two replies that differ; people are not shown empty
    ones, nor the same one twice.
    """
    found = []
    for sample in samples:
        texts = sample["completions"]
        kept = []
        for i, text in enumerate(texts):
            seen_before = text in texts[:i]
            if text.strip() and not seen_before:
                kept.append(i)
        if len(kept) < 2:
            continue
        row = {key: value for key, value in sample.items() if key != "task"}
        for key in ("completions", "ended", "models"):
            row[key] = [sample[key][i] for i in kept]
        found.append((task(row), row))
    return found


def _labeled(row: Record, answer: store.Answer) -> Record:
    return {
        **row,
        "ranks": answer.ranks,
        "likert": answer.likert,
        "flags": answer.flags,
        "labeler_id": answer.labeler,
    }


def _wait(
    db: sqlite3.Connection, asked: dict[str, set[str]], share: float, page: subprocess.Popen | None
) -> None:
    """Until training labelers have ranked `share` of the tasks of each group."""
    wanted = {group: math.ceil(share * len(tasks)) for group, tasks in asked.items()}
    total = sum(wanted.values())
    with StageProgress("waiting for people", step=0, total=total) as progress:
        while True:
            ranked = set()
            for answer in store.answers(db):
                if answer.ranks is not None and not answer.held_out:
                    ranked.add(answer.task_id)
            done = 0
            for group, tasks in asked.items():
                in_group = len(ranked & tasks)
                done += min(in_group, wanted[group])
            progress.update(done, {})
            if done == total:
                return
            if page and page.poll():
                raise RunError(
                    f"the labeling page has ended with exit code {page.returncode}, see above; mend"
                    " it and run again"
                )
            time.sleep(POLL)


@contextlib.contextmanager
def _page(cfg: PeopleConfig) -> Iterator[subprocess.Popen | None]:
    """The labeling page, served by a process of its own for as long as the run waits."""
    if not cfg.serve:
        print(
            f"waiting for rankings in {cfg.store}: serve it with instruct-jax label --store"
            f" {cfg.store}",
            flush=True,
        )
        yield None
        return
    command = [
        sys.executable,
        "-m",
        "instruct_jax",
        "label",
        "--store",
        cfg.store,
        "--port",
        str(cfg.port),
    ]
    with subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}) as page:
        try:
            yield page
        finally:
            page.terminate()
