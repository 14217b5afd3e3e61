"""Cores and memory as a container has them, from folders laid out as kernels lay out theirs; and how threads wait."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from w2s_tasks import machine

ROOT = Path(__file__).parent.parent
MB = 10**6
NO_LIMIT = "9223372036854771712"
V2_MOUNT = "30 24 0:26 {beginning} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = (
    "32 31 0:29 {beginning} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "35 31 0:32 {beginning} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return root


def version_2(root: Path, own: str, files: dict[str, str], beginning: str = "/") -> Path:
    """A root whose process is in the group `own`; files are named below /sys/fs/cgroup."""
    mounts = "22 24 0:21 / /proc rw - proc proc rw\n25 24 0:9 / /odd rw - fuse  rw\n" + V2_MOUNT.format(beginning=beginning)
    places = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return write(root, {"proc/self/cgroup": f"0::{own}", "proc/self/mountinfo": mounts, **places})


def version_1(root: Path, own: str, files: dict[str, str], beginning: str = "/") -> Path:
    """The same where each controller has a hierarchy of its own; a hybrid host mounts an empty version 2 beside them."""
    mounts = "\n".join(mount.format(beginning=beginning) for mount in V1_MOUNTS)
    mounts += "\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    groups = f"9:name=systemd:/\n4:memory:{own}\n2:cpu,cpuacct:{own}\n0::/"
    places = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return write(root, {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **places})


@pytest.fixture
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of 64 cores, all of which the process may run on."""
    monkeypatch.setattr(machine, "_schedulable", lambda: 64)


@pytest.mark.usefixtures("large_host")
@pytest.mark.parametrize(
    ("own", "beginning", "files", "cores", "memory"),
    [
        pytest.param("/", "/", {"cpu.max": "200000 100000", "memory.max": str(3 * MB)}, 2, 3 * MB, id="container"),
        pytest.param("/", "/", {"cpu.max": "max 100000", "memory.max": "max"}, 64, None, id="no limits"),
        pytest.param("/", "/", {}, 64, None, id="the root group has no such files"),
        pytest.param("/", "/", {"cpu.max": "150000 100000"}, 2, None, id="a core and a half"),
        pytest.param("/", "/", {"cpu.max": "20000 100000"}, 1, None, id="a fifth of a core"),
        pytest.param("/", "/", {"cpu.max": "400000 50000"}, 8, None, id="another period"),
        pytest.param(
            "/user.slice/job.scope",
            "/",
            {
                "user.slice/cpu.max": "300000 100000",
                "user.slice/memory.max": str(4 * MB),
                "user.slice/job.scope/cpu.max": "500000 100000",
                "user.slice/job.scope/memory.max": "max",
                "other.slice/cpu.max": "100000 100000",
            },
            3,
            4 * MB,
            id="the group above is tighter",
        ),
        pytest.param(
            "/slurm/job/step",
            "/",
            {
                "slurm/memory.max": str(9 * MB),
                "slurm/job/step/memory.max": str(5 * MB),
                "slurm/job/memory.high": str(6 * MB),
            },
            64,
            5 * MB,
            id="its own is the tightest",
        ),
        pytest.param("/", "/", {"memory.max": str(9 * MB), "memory.high": str(7 * MB)}, 64, 7 * MB, id="held back above"),
        pytest.param(
            "/docker/abc", "/docker/abc", {"cpu.max": "100000 100000"}, 1, None, id="the host's path, the container's mount"
        ),
        pytest.param("/../../other", "/", {"cpu.max": "100000 100000"}, 1, None, id="a path outside the namespace"),
        pytest.param("/gone", "/", {"cpu.max": "100000 100000"}, 1, None, id="a path that is not mounted"),
    ],
)
def test_version_2_is_read_as_the_kernel_states_it(
    tmp_path: Path, own: str, beginning: str, files: dict[str, str], cores: int, memory: int | None
):
    root = version_2(tmp_path, own, files, beginning)
    assert machine.cores(root) == cores
    assert machine.memory(root) == (memory or machine.memory(tmp_path / "nothing"))


@pytest.mark.usefixtures("large_host")
@pytest.mark.parametrize(
    ("own", "beginning", "files", "cores", "memory"),
    [
        pytest.param(
            "/docker/abc",
            "/docker/abc",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(3 * MB),
            },
            3,
            3 * MB,
            id="container",
        ),
        pytest.param(
            "/",
            "/",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": NO_LIMIT,
            },
            64,
            None,
            id="no limits",
        ),
        pytest.param(
            "/pods/one",
            "/",
            {
                "cpu,cpuacct/pods/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/pods/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/pods/one/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/pods/one/cpu.cfs_period_us": "100000",
                "memory/pods/memory.limit_in_bytes": str(2 * MB),
                "memory/pods/one/memory.limit_in_bytes": NO_LIMIT,
            },
            4,
            2 * MB,
            id="the group above is tighter",
        ),
        pytest.param(
            "/pods/one",
            "/pods/one",
            {
                "memory/memory.limit_in_bytes": NO_LIMIT,
                "memory/memory.stat": f"cache 0\nhierarchical_memory_limit {6 * MB}\nhierarchical_memsw_limit {NO_LIMIT}",
            },
            64,
            6 * MB,
            id="a limit above the mount",
        ),
    ],
)
def test_version_1_is_read_as_the_kernel_states_it(
    tmp_path: Path, own: str, beginning: str, files: dict[str, str], cores: int, memory: int | None
):
    root = version_1(tmp_path, own, files, beginning)
    assert machine.cores(root) == cores
    assert machine.memory(root) == (memory or machine.memory(tmp_path / "nothing"))


@pytest.mark.usefixtures("large_host")
def test_a_mount_point_with_a_space_in_its_name(tmp_path: Path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "proc/self/mountinfo": r"30 24 0:26 / /my\040groups rw - cgroup2 cgroup2 rw",
            "my groups/cpu.max": "700000 100000",
        },
    )
    assert machine.cores(tmp_path) == 7


def test_a_machine_without_control_groups_is_what_it_is(tmp_path: Path):
    assert machine.cores(tmp_path) == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 2**28 < machine.memory(tmp_path) < 2**50


@pytest.mark.usefixtures("large_host")
def test_processes_side_by_side_fit_the_cores_and_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "memory", lambda: 1000)
    assert machine.processes(300) == 3
    assert machine.processes(5000) == 1
    assert machine.processes(1) == 64


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which nothing about threads is set but what is named."""
    clean = {name: value for name, value in os.environ.items() if name not in machine.WAITING + machine.NUMBER}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True, timeout=300
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux: the affinity of a process")
def test_cores_that_a_process_may_not_run_on_are_not_counted():
    one = min(os.sched_getaffinity(0))
    pinned = f"import os; os.sched_setaffinity(0, [{one}])"
    done = python(f"{pinned}; from w2s_tasks import machine; print(machine.cores(), machine.share())")
    assert done.stdout.strip() == "1 {'GOMP_SPINCOUNT': '1000'}"  # the affinity is seen by torch itself


# ---- how threads wait ---------------------------------------------------------------------------------------------------


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has set nothing about threads."""
    for name in machine.WAITING + machine.NUMBER:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("undecided")
def test_idle_threads_sleep_unless_the_user_has_decided(monkeypatch: pytest.MonkeyPatch):
    for name in machine.WAITING + machine.NUMBER:
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            before = dict(os.environ)
            assert "GOMP_SPINCOUNT" not in machine.share()
            assert {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} == {
                k: v for k, v in before.items() if k != "OMP_NUM_THREADS"
            }
    with monkeypatch.context() as patch:
        patch.setenv("GOMP_SPINCOUNT", "")  # put back at the end
        patch.delenv("GOMP_SPINCOUNT")
        assert machine.share()["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"] == "1000"
        assert machine.share() == {}, "a child process keeps what it inherits"


@pytest.mark.parametrize(
    ("cores", "physical", "given", "threads"),
    [(64, 32, {}, None), (4, 32, {}, "4"), (48, 32, {}, "32"), (4, 32, {"OMP_NUM_THREADS": "9"}, None), (4, None, {}, "4")],
)
@pytest.mark.usefixtures("undecided", "large_host")
def test_torchs_threads_follow_a_quota(
    cores: int, physical: int | None, given: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
):
    import psutil

    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "environ", given)
    assert machine.share().get("OMP_NUM_THREADS") == threads


SETS_AND_LOADS = "from w2s_tasks import machine; machine.share(); import torch; print(torch.get_num_threads())"


def gnu() -> bool:
    import torch

    return sys.platform == "linux" and any(Path(torch.__file__).parent.glob("lib/libgomp*"))


def test_the_library_itself_says_that_it_has_read_the_setting():
    """`os.environ` reaches libgomp, which asks the C library when it is loaded, as long as torch is loaded after it."""
    if not gnu():
        pytest.skip("needs GNU OpenMP, with which torch's wheels for Linux on a CPU come")
    said = python(SETS_AND_LOADS, OMP_DISPLAY_ENV="verbose")
    assert "GOMP_SPINCOUNT = '1000'" in said.stderr
    too_late = python(f"import torch; {SETS_AND_LOADS}", OMP_DISPLAY_ENV="verbose")
    assert "GOMP_SPINCOUNT = '1000'" not in too_late.stderr
    assert python(SETS_AND_LOADS, OMP_NUM_THREADS="1").stdout == "1\n"


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}])
def test_the_command_sets_it_before_torch_is_loaded_and_doctor_says_so(given: dict[str, str]):
    if not gnu():
        pytest.skip("needs GNU OpenMP, with which torch's wheels for Linux on a CPU come")
    done = python(
        "import sys; sys.argv = ['w2s', 'doctor']; from trainers.cli import main; main()", OMP_DISPLAY_ENV="verbose", **given
    )
    assert ("GOMP_SPINCOUNT = '1000'" in done.stderr) == (not given)
    decided = "OMP_WAIT_POLICY=active" if given else "GOMP_SPINCOUNT=1000"
    assert f"set: {decided}" in done.stdout
    assert "For the stock lm_eval: export GOMP_SPINCOUNT=1000" in done.stdout


SHELL_SCRIPTS = sorted(
    p for p in (ROOT / "scripts").iterdir() if p.is_file() and p.read_text().startswith("#!/usr/bin/env bash")
)


def test_every_script_that_computes_says_how_threads_wait():
    """By scripts/environment, by one thread a process, or by itself."""
    computing = [p for p in SHELL_SCRIPTS if re.search(r"^\s*(exec )?(w2s|python -m) ", p.read_text(), re.MULTILINE)]
    assert len(computing) > 10
    for script in computing:
        ways = r'source "\$\(dirname "\$0"\)/environment"', r'(OMP_NUM_THREADS|GOMP_SPINCOUNT)="\$\{\1:-1(000)?\}"'
        assert re.search("|".join(ways), script.read_text()), script


def sourced(folder: Path, **environment: str) -> dict[str, str]:
    """The variables that a script has behind its line `source environment`, in an environment that is installed already."""
    stamp = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest()
    write(folder, {"venv/w2s-stamp": stamp, "venv/bin/python": f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"'})
    (folder / "venv/bin/python").chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in machine.WAITING + machine.NUMBER}
    given = {**clean, "W2S_VENV": str(folder / "venv"), "PYTHON": sys.executable, **environment}
    command = ["bash", "-c", f"source {shlex.quote(str(ROOT / 'scripts/environment'))}; env -0"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def test_the_scripts_environment_lets_idle_threads_sleep_unless_the_user_has_decided(tmp_path: Path):
    assert sourced(tmp_path)["GOMP_SPINCOUNT"] == "1000"
    assert "GOMP_SPINCOUNT" not in sourced(tmp_path, OMP_WAIT_POLICY="passive")
    assert sourced(tmp_path, GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"


def test_test_processes_follow_what_the_container_has(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """`pytest -n auto`, as xdist asks for it."""
    monkeypatch.setattr(machine, "processes", lambda bytes_each: 3 if bytes_each > 1e9 else 64)
    assert request.config.hook.pytest_xdist_auto_num_workers(config=request.config) == 3
