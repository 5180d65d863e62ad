"""Runs the tiny chain of tests/chain/tiny.yaml in a process of its own:  driver.py OUT [STAGE:STEP]
(dies by SIGKILL at that step).
"""

import os
import signal
import sys
from pathlib import Path

from instruct_jax.chain.read import load_run
from instruct_jax.chain.run import run
from instruct_jax.runtime.metrics import MetricsFile


def main(out: str, moment: str = "") -> None:
    stage, _, step = moment.partition(":")
    write = MetricsFile.write

    def write_or_die(self: MetricsFile, at: int, metrics) -> None:
        write(self, at, metrics)
        if moment and at == int(step) and Path(self._file.name).parent.name == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsFile.write = write_or_die  # type: ignore[method-assign]
    config = load_run(Path(__file__).with_name("tiny.yaml"), ["--out", out])
    run(config, list(config.stages))


if __name__ == "__main__":
    main(*sys.argv[1:])
