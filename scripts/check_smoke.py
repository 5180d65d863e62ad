"""Asserts on what the smoke run left behind:  python scripts/check_smoke.py runs/quickstart_smoke"""

import json
import math
import sys
from pathlib import Path

MODELS = {"base", "base_prompted", "sft", "best_of_n", "ppo", "ppo_ptx"}

folder = Path(sys.argv[1])
summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
for name in ("win_rate_vs_sft", "gold_score", "kl_to_sft"):
    assert set(summary[name]) == MODELS, (name, summary[name])
assert set(summary["pretrain_nll"]) == {"base", "sft", "ppo", "ppo_ptx"}, summary["pretrain_nll"]
for rate in summary["win_rate_vs_sft"].values():
    low, high = rate["ci95"]
    assert 0 <= low <= rate["mean"] <= high <= 1 and rate["n"] == 64, rate
assert all(0 <= score <= 1 for score in summary["gold_score"].values()), summary["gold_score"]
assert abs(summary["kl_to_sft"]["sft"]) < 1e-3, (
    "the SFT model's own log-probs differ between sampler and learner"
)
assert all(math.isfinite(x) and x > 0 for x in summary["pretrain_nll"].values()), summary[
    "pretrain_nll"
]
assert 0.3 < summary["reward_model"]["accuracy_heldout_prompts"] < 1, summary["reward_model"]
assert summary["recompiles_after_warmup"] == 0, summary["recompiles_after_warmup"]
assert summary["peak_memory_gib"] < 4, summary["peak_memory_gib"]
page = (folder / "report.html").read_text(encoding="utf-8")
assert page.count("<svg") > 10 and "http://" not in page.replace("http://www.w3.org", ""), (
    "report.html is not whole, or not self-contained"
)
print(
    f"{folder}: summary.json and report.html are whole; {sum(summary['seconds'].values()):.0f} s of"
    " stages"
)
