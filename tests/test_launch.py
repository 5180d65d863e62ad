"""The launch scripts: their dry runs, and how they resume after a preemption, with commands of the
same names that only take notes.
"""

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = "configs/quickstart.yaml"
TPU = ("tpu_vm.sh", "my-run", "v5p-64", "us-east5-a", "gs://bucket", CONFIG)
SLURM = ("slurm.sh", "4", "8", CONFIG)  # and OUT
JOBSET = ("jobset.sh", "my-run", "repo/image:1", "claim")  # and DEVICES, CONFIG
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
CLOUD = ("gcloud", "sbatch", "srun", "scontrol", "kubectl")


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """A folder at the head of PATH.

    The launchers' commands are there and fail; `fake` gives them something to do.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in CLOUD:
        fake(folder, name, "echo called for real >&2; exit 99")
    fake(folder, "sleep", "")
    return folder


def fake(commands: Path, name: str, body: str) -> None:
    """A command that appends its arguments to the file `calls` and then does `body` in bash."""
    path = commands / name
    path.write_text(
        f'#!{shutil.which("bash")}\necho "{name} $*" >>"{commands}/calls"\n{body}\n',
        encoding="utf-8",
    )
    path.chmod(0o755)


def calls(commands: Path) -> list[str]:
    return (
        (commands / "calls").read_text(encoding="utf-8").splitlines()
        if (commands / "calls").exists()
        else []
    )


def launch(script: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", f"scripts/{script}", *args]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, timeout=60
    )


def dry(script: str, *args: str) -> str:
    found = launch(script, "--dry-run", *args)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_it(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""


def test_shellcheck_finds_nothing():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    found = subprocess.run(
        [str(shellcheck), *(f"scripts/{path.name}" for path in SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


WRONG = {
    "tpu_vm.sh without arguments": (TPU[:1], "are needed"),
    "tpu_vm.sh with an unknown type": ((*TPU[:2], "h100-8", *TPU[3:]), "TYPE=h100-8"),
    "tpu_vm.sh without the config": ((*TPU[:5], "nowhere.yaml"), "nowhere.yaml: no such file"),
    "tpu_vm.sh with stages": ((*TPU, "--stages", "sft"), "--stages"),
    "slurm.sh without OUT": (SLURM, "are needed"),
    "slurm.sh with no number": (("slurm.sh", "four", "8", CONFIG, "out"), "NODES=four"),
    "slurm.sh without the config": (
        ("slurm.sh", "4", "8", "nowhere.yaml", "out"),
        "nowhere.yaml: no such file",
    ),
    "slurm.sh with stages": ((*SLURM, "out", "--stages=sft"), "--stages"),
    "jobset.sh without arguments": (JOBSET, "are needed"),
    "jobset.sh with a bad name": (
        ("jobset.sh", "My_run", *JOBSET[2:], "gpu:1x8", CONFIG),
        "NAME=My_run",
    ),
    "jobset.sh with unknown devices": ((*JOBSET, "h100:8", CONFIG), "DEVICES=h100:8"),
    "jobset.sh with 2 chips": (
        (*JOBSET, "tpu-v5-lite-podslice:1x2", CONFIG),
        "a multiple of 4 chips",
    ),
}


@pytest.mark.parametrize("args, message", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("mode", [(), ("--dry-run",)], ids=["", "dry"])
def test_wrong_arguments(args, message, mode, commands):
    found = launch(args[0], *mode, *args[1:])
    assert (found.returncode, found.stdout, calls(commands)) == (2, "", [])
    assert message in found.stderr and f"usage: bash scripts/{args[0]} [--dry-run]" in found.stderr


def test_tpu_dry_run(commands):
    create, describe, tar, scp, ssh, delete = dry(
        TPU[0], "--spot", *TPU[1:], "--ppo.kl_coef", "0.05"
    ).splitlines()
    assert create.startswith(
        "gcloud compute tpus queued-resources create my-run --zone=us-east5-a --node-id=my-run "
    )
    assert (
        "--accelerator-type=v5p-64 --runtime-version=v2-alpha-tpuv5 " in create
        and create.endswith(" --spot ")
    )
    assert "queued-resources describe my-run" in describe
    assert (
        "scp" in scp
        and scp.split()[5].startswith(tar.split()[2].rpartition("/")[0])
        and "--worker=all" in scp
    )
    assert "ssh my-run" in ssh and "--worker=all" in ssh
    assert "--worker bucket my-run configs/quickstart.yaml --ppo.kl_coef 0.05" in ssh.replace(
        "\\", ""
    )
    assert (
        delete.startswith("gcloud compute tpus queued-resources delete my-run")
        and "--force" in delete
    )
    assert "--spot" not in dry(*TPU)
    assert calls(commands) == []


GCLOUD = """
state="$(cat "{here}/state" 2>/dev/null)"
case "$*" in
*"queued-resources create"*) echo WAITING_FOR_RESOURCES >"{here}/state" ;;
*"queued-resources delete"*) rm "{here}/state" ;;
*"queued-resources describe"*)
    echo "$state"
    [ "$state" != WAITING_FOR_RESOURCES ] || echo ACTIVE >"{here}/state" ;;
*"storage ls"*) [ -e "{here}/report.html" ] ;;
*" ssh "*)
    [ "$state" = ACTIVE ] || exit 255
    {session} ;;
esac
"""
# the first session loses its slice, the second is finished
PREEMPTED_ONCE = (
    'if mkdir "{here}/seen" 2>/dev/null; then echo {state} >"{here}/state"; exit 255; fi; touch'
    ' "{here}/report.html"'
)


def fake_gcloud(commands: Path, session: str, **values: str) -> None:
    fake(
        commands,
        "gcloud",
        GCLOUD.format(here=commands, session=session.format(here=commands, **values)),
    )
    fake(commands, "tar", "")


def verbs(commands: Path) -> list[str]:
    """What was asked of gcloud, without the polls."""
    words = [line.split() for line in calls(commands) if line.startswith("gcloud compute")]
    return [words[4] for words in words if words[4] != "describe"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_a_preempted_slice_is_requested_again(state, commands):
    fake_gcloud(commands, PREEMPTED_ONCE, state=state)
    found = launch(*TPU, "--ppo.kl_coef", "0.05")
    assert (found.returncode, found.stdout) == (
        0,
        "done: gs://bucket/my-run, see gs://bucket/my-run/report.html\n",
    ), found.stderr
    assert verbs(commands) == ["create", "scp", "ssh", "delete", "create", "scp", "ssh", "delete"]
    first, second = (line for line in calls(commands) if " ssh " in line)
    assert first == second and first.endswith(
        "--worker bucket my-run configs/quickstart.yaml --ppo.kl_coef 0.05 "
    )


def test_the_launcher_finds_its_slice_again(commands):
    """As after Ctrl-C: what is active is used; a finished run asks for nothing."""
    fake_gcloud(commands, 'touch "{here}/report.html"')
    (commands / "state").write_text("ACTIVE\n")
    assert launch(*TPU).returncode == 0
    assert verbs(commands) == ["scp", "ssh", "delete"]
    assert launch(*TPU).returncode == 0
    assert verbs(commands) == ["scp", "ssh", "delete"]


@pytest.mark.parametrize("code, sessions", [(2, 1), (1, 3)], ids=["bad input", "a process dies"])
def test_a_run_that_cannot_go_on_gives_the_slice_back(code, sessions, commands):
    fake_gcloud(commands, f"exit {code}")
    found = launch(*TPU)
    assert found.returncode == code and "the slice is deleted" in found.stderr
    assert verbs(commands) == ["create", *["scp", "ssh"] * sessions, "delete"]


def test_a_request_that_is_refused(commands):
    fake(commands, "gcloud", 'case "$*" in *describe*) ;; *) exit 1 ;; esac')
    found = launch(*TPU)
    assert found.returncode == 1 and "three failures in a row" in found.stderr
    assert verbs(commands) == ["create", "create", "create", "delete"]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with what tpu_vm.sh reads."""
    root = tmp_path / "checkout"
    for folder in (".git", ".venv/bin", "configs", "runs", "scripts"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file").touch()
    for name in ("scripts/tpu_vm.sh", CONFIG):
        shutil.copy(ROOT / name, root / name)
    return root


def test_what_is_sent_to_the_workers(commands, checkout, tmp_path):
    fake_gcloud(commands, 'touch "{here}/report.html"')
    (commands / "tar").unlink()
    assert (
        subprocess.run(
            ["bash", str(checkout / "scripts/tpu_vm.sh"), *TPU[1:]], capture_output=True, timeout=60
        ).returncode
        == 0
    )
    names = subprocess.run(
        ["tar", "-tzf", str(tmp_path / "instruct_jax-my-run.tgz")], capture_output=True, text=True
    ).stdout.split()
    assert {name.split("/")[1] for name in names} == {
        "",
        "configs",
        "scripts",
    } and f"./{CONFIG}" in names


def test_a_worker_installs_mounts_and_runs(commands, checkout):
    """What it would install is there or takes notes."""
    for name in ("uv", "gcsfuse", "pkill"):
        fake(commands, name, "")
    for name in ("mountpoint", "pgrep"):
        fake(commands, name, "exit 1")
    fake(commands, "instruct-jax", "exit 3")
    (checkout / ".venv/bin/instruct-jax").symlink_to(commands / "instruct-jax")
    command = [
        "bash",
        str(checkout / "scripts/tpu_vm.sh"),
        "--worker",
        "bucket",
        "my-run",
        CONFIG,
        "--data.texts",
        "[a, b]",
    ]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 3
    *_, mount, _, _, run = calls(commands)
    assert mount.startswith("gcsfuse --implicit-dirs ") and mount.endswith(" bucket runs")
    assert run == f"instruct-jax run --config {CONFIG} --data.texts [a, b] --out runs/my-run"


def test_an_installation_that_fails_is_no_bad_input(commands, checkout):
    """uv has an exit code 2 of its own."""
    fake(commands, "uv", "exit 2")
    command = ["bash", str(checkout / "scripts/tpu_vm.sh"), "--worker", "bucket", "my-run", CONFIG]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    assert [line.split()[0] for line in calls(commands)] == ["uv"]


def test_slurm_dry_run(commands):
    submit, *settings, step = dry(*SLURM, "/shared/my run", "--ppo.kl_coef", "0.05").splitlines()
    assert submit.startswith(
        "sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 scripts/slurm.sh --job "
    )
    assert {"#SBATCH --signal=TERM@120", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(
        settings
    )
    assert (
        step == f"srun --cpu-bind=none instruct-jax run --config {CONFIG} --ppo.kl_coef 0.05 --out"
        " /shared/my\\ run "
    )
    assert calls(commands) == []


def test_slurm_submits_itself(commands):
    fake(commands, "sbatch", "")
    assert launch(*SLURM, "/shared/run", "--seed", "3").returncode == 0
    submit = "sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 scripts/slurm.sh --job"
    assert calls(commands) == [f"{submit} {CONFIG} /shared/run --seed 3"]


JOBS = {
    "finished": ("mkdir -p {out}; touch {out}/report.html", ["srun"], 0),
    "finished on the second try": (
        "mkdir {out} || {{ touch {out}/report.html; exit 0; }}; exit 1",
        ["srun", "srun"],
        0,
    ),
    "stopped by SIGTERM": ("exit 0", ["srun", "scontrol"], 0),
    "stopped by SIGTERM before it could save": ("exit 143", ["srun", "scontrol"], 0),
    "bad input": ("exit 2", ["srun"], 2),
    "a process dies again and again": ("exit 134", ["srun", "srun", "srun"], 134),
}


@pytest.mark.parametrize("body, expected, code", JOBS.values(), ids=JOBS)
def test_a_slurm_job_goes_on_until_finished(body, expected, code, commands, tmp_path):
    out = tmp_path / "run"
    fake(commands, "srun", body.format(out=out))
    fake(commands, "scontrol", "")
    found = launch("slurm.sh", "--job", CONFIG, str(out), "--seed", "3", SLURM_JOB_ID="77")
    assert found.returncode == code
    assert [line.split()[0] for line in calls(commands)] == expected
    assert (
        calls(commands)[0]
        == f"srun --cpu-bind=none instruct-jax run --config {CONFIG} --seed 3 --out {out}"
    )
    assert "scontrol" not in expected or calls(commands)[-1] == "scontrol requeue 77"


def manifest(devices: str, *overrides: str) -> dict[str, Any]:
    return yaml.safe_load(dry(*JOBSET, devices, CONFIG, *overrides))


def job_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (job,) = jobset["spec"]["replicatedJobs"]
    assert (job["name"], job["replicas"]) == ("run", 1)
    return job["template"]["spec"]


def container_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


def test_jobset_for_a_tpu_slice(commands):
    jobset = manifest("tpu-v5p-slice:4x4x2")
    assert (jobset["apiVersion"], jobset["kind"], jobset["metadata"]["name"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        "my-run",
    )
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert jobset["spec"]["network"] == {
        "enableDNSHostnames": True,
        "publishNotReadyAddresses": True,
    }
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0 and policy["restartStrategy"] == "BlockingRecreate"
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    job = job_of(jobset)
    assert (job["completionMode"], job["parallelism"], job["completions"], job["backoffLimit"]) == (
        "Indexed",
        8,
        8,
        0,
    )
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": "run",
        "operator": "In",
        "values": [2],
    }
    pod, container = job["template"]["spec"], container_of(jobset)
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 300)
    tpu = {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x2",
    }
    assert pod["nodeSelector"] == tpu and container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["image"] == "repo/image:1" and container["args"] == [
        "--config",
        CONFIG,
        "--out",
        "/runs/my-run",
    ]
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert (
        claims == {"runs": {"claimName": "claim"}}
        and {"name": "runs", "mountPath": "/runs"} in container["volumeMounts"]
    )
    assert calls(commands) == []


def test_jobset_for_gpus(commands):
    jobset = manifest("gpu:4x8")
    assert (job_of(jobset)["parallelism"], job_of(jobset)["completions"]) == (4, 4)
    assert container_of(jobset)["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert (
        not jobset["metadata"]["annotations"]
        and not job_of(jobset)["template"]["spec"]["nodeSelector"]
    )
    told = [
        "--coordinator",
        "my-run-run-0-0.my-run:8476",
        "--processes",
        "4",
        "--process",
        "$(JOB_COMPLETION_INDEX)",
    ]
    assert container_of(jobset)["args"][-6:] == told


def test_jobset_keeps_the_words_of_the_user(commands):
    words = ["--data.texts", '["a&b", "c\\d"]', "@NAME@ @IMAGE@", "$HOME 'x'"]
    assert container_of(manifest("gpu:1x8", *words))["args"][2:6] == words


def test_jobset_is_applied(commands):
    fake(commands, "kubectl", f'cat >"{commands}/applied"')
    assert launch(*JOBSET, "gpu:4x8", CONFIG).returncode == 0
    assert calls(commands) == ["kubectl apply --filename=-"]
    assert yaml.safe_load((commands / "applied").read_text()) == manifest("gpu:4x8")


def pod(commands: Path, program: str) -> subprocess.Popen:
    """The container's command with a fake instruct-jax; the name of the first pod is known at the
    second look.
    """
    fake(commands, "getent", f'mkdir "{commands}/asked" 2>/dev/null && exit 2; exit 0')
    fake(commands, "instruct-jax", program)
    container = container_of(manifest("tpu-v5p-slice:2x2x2"))
    return subprocess.Popen([*container["command"], *container["args"]])


@pytest.mark.parametrize("code", [0, 2, 134])
def test_a_pod_ends_as_its_process(code, commands):
    assert pod(commands, f"exit {code}").wait(60) == code
    asked = ["getent hosts my-run-run-0-0.my-run"]
    assert calls(commands) == [
        *asked,
        "sleep 1",
        *asked,
        f"instruct-jax run --config {CONFIG} --out /runs/my-run",
    ]


def test_a_pod_that_is_stopped_has_saved_and_fails(commands):
    """The process exits with 0 after SIGTERM, but the run is not finished."""
    program = (
        f'trap \'touch "{commands}/saved"; exit 0\' TERM; touch "{commands}/ready"; while :; do'
        " command -p sleep 0.1; done"
    )
    process = pod(commands, program)
    try:
        limit = time.monotonic() + 60
        while not (commands / "ready").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert (commands / "saved").exists()


def test_the_templates_words_are_all_filled_in(commands):
    for devices in ("gpu:1x1", "tpu-v6e-slice:4x4"):
        assert not re.search("@[A-Z]+@", dry(*JOBSET, devices, CONFIG))
