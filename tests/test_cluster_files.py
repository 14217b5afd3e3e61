"""The files of harness_configs/cluster do what their first lines say, with stand-ins for SLURM's own commands."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from trainers.cli import app

FILES = Path(__file__).parent.parent / "harness_configs" / "cluster"
ARMS = "arms=[student, ceiling]"


def slurm(folder: Path, **commands: str) -> dict[str, str]:
    """An environment with stand-ins for SLURM's commands, and a virtual environment that is this one."""
    for name, text in commands.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    activate = folder / "env" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    programs = Path(sys.executable).parent
    activate.write_text(f'export PATH="{folder / "bin"}:{programs}:$PATH"\n')
    return {"W2S_ENV": str(folder / "env"), "SLURM_JOB_ID": "17", **os.environ}


@pytest.mark.parametrize("name", ["ray.sbatch", "array.sbatch"])
def test_a_batch_script_is_short_says_how_to_submit_it_and_is_bash(name: str):
    text = (FILES / name).read_text()
    assert len(text.splitlines()) <= 30
    assert f"{name} my.yaml" in text
    assert all(line.startswith("#") for line in text.split("set -")[0].splitlines() if line)
    subprocess.run(["bash", "-n", str(FILES / name)], check=True)


@pytest.mark.slow
def test_a_task_of_an_array_ends_at_its_signal_with_a_checkpoint_and_goes_on_when_it_is_requeued(
    experiment_file: Path, tmp_path: Path
):
    environment = slurm(tmp_path, scontrol=f'echo "$@" >> {tmp_path}/scontrol.log')
    environment |= {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_JOB_ID": "40"}
    command = ["bash", str(FILES / "array.sbatch"), str(experiment_file), "--runs-dir", str(tmp_path / "runs")]
    command += ["--set", ARMS, "--set", "strong.epochs=30", "--grid", "method=xent,logconf"]

    def task() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE)

    first = task()
    stages = tmp_path / "runs" / "small" / "stages"
    while not list(stages.glob(".work-fit-*/checkpoints/checkpoint-*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGUSR1)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 143, errors
    assert b"terminated: what was finished is kept" in errors
    assert (tmp_path / "scontrol.log").read_text() == "requeue 40_2\n"
    kept = list(stages.glob(".work-fit-*/checkpoints/checkpoint-*"))
    assert kept
    again = task()
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert (tmp_path / "scontrol.log").read_text() == "requeue 40_2\n"
    cells = json.loads((tmp_path / "runs" / "small" / "sweep.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["pending", "done"]


def test_the_rayjob_runs_a_command_that_there_is():
    job = yaml.safe_load((FILES / "rayjob.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    command: Any = typer.main.get_command(app)
    group, name, *arguments = words
    assert group == "w2s"
    context = command.commands[name].make_context(name, arguments)
    assert context.params["store"] == "s3://my-bucket/w2s"
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for group in groups for c in group["template"]["spec"]["containers"]}
    assert len(images) == 1
    pins = (FILES.parent.parent / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins


@pytest.mark.slow
def test_one_allocation_is_one_cluster_and_one_sweep(experiment_file: Path, tmp_path: Path):
    """On one node, by its own address: Ray does not take 127.0.0.1 for a node's."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    node = ray.util.get_node_ip_address()
    environment = slurm(tmp_path, scontrol=f"echo {node}", srun='exec "$@"')
    environment |= {"SLURM_JOB_NODELIST": node, "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
    environment |= {"RAY_AUTH_MODE": "disabled"}
    command = ["bash", str(FILES / "ray.sbatch"), str(experiment_file), "--runs-dir", str(tmp_path / "runs")]
    command += ["--set", ARMS, "--grid", "method=xent,logconf"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / "runs" / "small" / "sweep.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["done", "done"]
