"""Asserts on what the smoke run left behind:  python scripts/check_smoke.py
runs/quickstart_smoke
"""

import json
import math
import sys
from pathlib import Path

POLICIES = {"base", "select", "ppo", "ppo_ptx"}
MODELS = POLICIES | {"base_prompted", "best_of_n"}

folder = Path(sys.argv[1])
summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
found = summary["evaluations"]["evaluate"]
assert found["judge"] == "gold" and found["baseline"] == "select", found
rated = MODELS - {"select"} | {"select_control"}
assert set(found["win_rate"]) == rated, found["win_rate"]
for name in ("gold_score", "kl"):
    assert set(found[name]) == MODELS, (name, found[name])
assert set(found["pretrain_nll"]) == POLICIES, found["pretrain_nll"]
for rate in found["win_rate"].values():
    low, high = rate["ci95"]
    assert 0 <= low <= rate["mean"] <= high <= 1 and rate["n"] == 64, rate
assert all(0 <= score <= 1 for score in found["gold_score"].values()), found["gold_score"]
own_kl = found["kl"]["select"]
assert abs(own_kl) < 1e-3, "the baseline's own log-probs differ between sampler and learner"
assert all(math.isfinite(x) and x > 0 for x in found["pretrain_nll"].values()), found
accuracy = summary["reward_models"]["reward"]["accuracy_heldout_prompts"]
assert 0.3 < accuracy < 1, summary["reward_models"]
assert summary["recompiles_after_warmup"] == 0, summary["recompiles_after_warmup"]
assert summary["peak_memory_gib"] < 4, summary["peak_memory_gib"]
page = (folder / "report.html").read_text(encoding="utf-8")
links = page.replace("http://www.w3.org", "").count("http://")
assert page.count("<svg") > 10 and not links, "report.html is not whole, or not self-contained"
seconds = sum(summary["seconds"].values())
print(f"{folder}: summary.json and report.html are whole; {seconds:.0f} s of stages")
