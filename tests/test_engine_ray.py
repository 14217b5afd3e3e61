"""The engine `ray` on real clusters of several nodes on loopback: the local engine's bytes, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.engine import add_node
from ray_jobs import attempts, job

ray = pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from trainers import cli  # noqa: E402
from trainers.config.reading import load  # noqa: E402
from trainers.flow import ray_engine  # noqa: E402
from trainers.flow.progress import Progress  # noqa: E402
from trainers.flow.run import Run, open_run  # noqa: E402
from trainers.flow.worker import Plan, build_step  # noqa: E402
from trainers.report.report import write_report  # noqa: E402
from trainers.store.stages import MANIFEST, Store  # noqa: E402
from w2s_tasks.errors import UserError  # noqa: E402

ARMS = "arms=[student, ceiling]"


@pytest.fixture(scope="module", autouse=True)
def _alike() -> Iterator[None]:
    """One thread a step, as Ray gives it, in this process too: sums over threads differ in their last digits."""
    import torch

    before, threads = dict(os.environ), torch.get_num_threads()
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ.update(RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1", PYTHONPATH=here)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


class Nodes:
    """A cluster of a head without cores, and workers of one core each."""

    def __init__(self, workers: int) -> None:
        self.cluster = Cluster()
        add_node(self.cluster, "127.0.0.2", 0)
        self.workers = {
            address: add_node(self.cluster, address, 1) for address in (f"127.0.0.{3 + n}" for n in range(workers))
        }
        self.cluster.wait_for_nodes()

    def kill(self, address: str) -> None:
        """End a machine as a power cut does, and let another one join."""
        self.cluster.remove_node(self.workers.pop(address), allow_graceful=False)

    def join(self, address: str) -> None:
        """Let a machine join."""
        self.workers[address] = add_node(self.cluster, address, 1)

    def options(self) -> list[str]:
        """Of `w2s`, to use it."""
        return ["--engine", "ray", "--address", str(self.cluster.address)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    running = Nodes(2)
    yield running
    running.cluster.shutdown()


def start(*arguments: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "trainers.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def w2s(*arguments: Any) -> str:
    """Run it to its end; what it wrote to standard error."""
    process = start(*arguments)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    return errors


def local(config: Path, runs: Path, *sets: str) -> Run:
    """A run of the local engine, with its report."""
    run = open_run(load(str(config), list(sets))[0], runs)
    run.build(Progress(quiet=True))
    write_report(run)
    return run


def contents(runs: Path) -> dict[str, Any]:
    """Every finished stage's files by their hashes; lm_eval's own hold times and paths, so of those only the number."""
    found = {}
    for manifest in runs.glob(f"*/stages/*-*/{MANIFEST}"):
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        kept = {name: digest for name, digest in files.items() if name.endswith((".safetensors", ".parquet", "curves.json"))}
        found[manifest.parent.name] = (kept, len(files))
    return found


def numbers(report: Path) -> Any:
    """What a report says of every model."""
    data = json.loads(report.read_text(encoding="utf-8"))
    return [data[key] for key in ("arms", "arm_means", "gaps", "weak_labels", "diagnostics", "disagreements")]


@pytest.mark.slow
def test_results_are_the_local_engines_and_a_second_call_builds_nothing(nodes: Nodes, experiment_file: Path, tmp_path: Path):
    arguments = ["run", experiment_file, "--runs-dir", tmp_path / "ray", "--set", ARMS, *nodes.options()]
    told = w2s(*arguments)
    assert "Ray: 3 machines, 2 cores" in told
    assert told.count("train student, seed 0") == 2  # where it began, and that it ended
    local(experiment_file, tmp_path / "local", ARMS)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert numbers(tmp_path / "ray/small/report.json") == numbers(tmp_path / "local/small/report.json")
    assert "train" not in w2s(*arguments).replace("Generating train", "")


@pytest.fixture
def joined(nodes: Nodes) -> Iterator[Nodes]:
    """This process is a driver of the cluster."""
    with ray_engine.cluster(str(nodes.cluster.address)):
        yield nodes


@pytest.mark.slow
def test_a_mistake_is_told_once_and_stops_only_what_stands_on_it(joined: Nodes, tmp_path: Path):
    jobs = [
        job(tmp_path, "a"),
        job(tmp_path, "b", "a", mistake="the key is wrong"),
        job(tmp_path, "c", "b"),
        job(tmp_path, "d", "a"),
        job(tmp_path, "e", "c", "d"),
        job(tmp_path, "b", "a", mistake="the key is wrong"),  # another cell's
    ]
    ended = {o.job.name: o for o in ray_engine.Dispatch().outcomes(jobs)}
    assert {name: o.error is None for name, o in ended.items()} == {"a": True, "b": False, "c": False, "d": True, "e": False}
    assert all(ended[name].cause == "write b" for name in "bce")
    assert str(ray_engine.reason(ended["e"])) == "write b: the key is wrong"
    assert isinstance(ended["b"].error, UserError)
    assert [len(attempts(tmp_path, name)) for name in "abcde"] == [1, 1, 0, 1, 0]


@pytest.mark.slow
def test_a_step_of_a_machine_that_died_is_begun_again_elsewhere(joined: Nodes, tmp_path: Path):
    begun: list[tuple[str, str]] = []

    def kill_first() -> None:
        while not (begun and attempts(tmp_path, "a")):
            time.sleep(0.1)
        joined.kill(begun[0][1])

    killer = threading.Thread(target=kill_first)
    killer.start()
    jobs = [job(tmp_path, "a", seconds=60), job(tmp_path, "b", "a")]
    outcomes = list(ray_engine.Dispatch(lambda *told: begun.append(told)).outcomes(jobs))
    killer.join()
    joined.join("127.0.0.9")
    assert [o.error for o in outcomes] == [None, None]
    assert len(attempts(tmp_path, "a")) == 2
    assert outcomes[0].built is not None
    assert outcomes[0].built.node != begun[0][1]


def test_what_is_there_is_neither_asked_twice_nor_begun(joined: Nodes, tmp_path: Path):
    (tmp_path / "a").touch()
    jobs = [job(tmp_path, name, *inputs) for _ in range(3) for name, *inputs in (("a",), ("b", "a"))]
    outcomes = list(ray_engine.Dispatch(window=1).outcomes(jobs))
    assert [(o.job.name, o.built is not None and o.built.reused) for o in outcomes] == [("a", True), ("b", False)]


@pytest.mark.slow
def test_an_interrupt_cancels_what_runs_and_keeps_what_is_finished(nodes: Nodes, experiment_file: Path, tmp_path: Path):
    arguments = [
        "run",
        experiment_file,
        "--runs-dir",
        tmp_path,
        "--set",
        ARMS,
        "--set",
        "strong.epochs=400",
        *nodes.options(),
    ]
    process = start(*arguments)
    stages = tmp_path / "small" / "stages"
    while not list(stages.glob(".work-fit-*/labels.parquet")) or len(list(stages.glob(f"*-*/{MANIFEST}"))) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    finished = {path.parent.name for path in stages.glob(f"*-*/{MANIFEST}")}
    assert finished
    time.sleep(3)
    assert {path.parent.name for path in stages.glob(f"*-*/{MANIFEST}")} == finished  # nobody works on
    from trainers.store.stages import busy

    assert busy(tmp_path / "small") is None


def test_options_that_do_not_go_together_are_one_error(experiment_file: Path, tmp_path: Path):
    run = ["run", str(experiment_file), "--runs-dir", str(tmp_path)]
    for more, error in (
        (["--address", "auto"], "needs --engine ray"),
        (["--engine", "ray", "--max-cost", "1"], "--max-cost"),
        (["--engine", "ray", "--address", "127.0.0.1:1"], "nobody answers"),
    ):
        done = CliRunner().invoke(cli.app, [*run, *more])
        assert isinstance(done.exception, UserError)
        assert error in str(done.exception)


def test_what_a_step_asks_of_a_machine_is_in_no_key(experiment_file: Path, tmp_path: Path):
    plain, asking = (
        open_run(load(str(experiment_file), sets)[0], tmp_path)
        for sets in ([], ["resources={fit: {gpus: 2, cpus: 8, processes: 2, memory_gb: 10}, safety: {gpus: 0.5}}"])
    )
    assert [plain.key(s) for s in plain.layout.steps.values()] == [asking.key(s) for s in asking.layout.steps.values()]
    options = ray_engine.Machines(cores=16, gpus=True).options
    first = next(j for j in ray_engine.jobs_of(plain, Store(tmp_path / "s")) if j.name.startswith("split-"))
    assert first.light
    assert (options(first)["num_cpus"], options(first)["num_gpus"]) == (1, 0)
    both = [ray_engine.jobs_of(run, Store(tmp_path / "s")) for run in (plain, asking)]
    fits = [next(j for j in jobs if j.name.startswith("fit-")) for jobs in both]
    assert [(options(j)["num_cpus"], options(j)["num_gpus"]) for j in fits] == [(1, 1), (8, 2)]
    assert options(fits[1])["memory"] == 10**10
    assert ray_engine.Machines(cores=16, gpus=False).options(fits[0])["num_cpus"] == 8


@pytest.mark.slow
def test_a_step_that_several_processes_build_is_the_same_stage(experiment_file: Path, tmp_path: Path):
    together = open_run(load(str(experiment_file), [ARMS, "resources={fit: {processes: 2}}"])[0], tmp_path / "two")
    store, config = Store(tmp_path / "two"), together.layout.config
    plan = Plan(config.model_dump_json(), str(together.folder), str(tmp_path / "two"))
    for name in ("split/0", "fit/ceiling, seed 0"):
        assert not build_step(plan, name, config.resources.of(together.layout.steps[name].kind).processes).reused
    alone = local(experiment_file, tmp_path / "one", ARMS)
    step = alone.layout.steps["fit/ceiling, seed 0"]
    first, second = store.find(step.kind, together.key(step)), alone.stages[step.name]
    assert first is not None
    assert first.key == second.key
    curves = [json.loads((stage.path / "curves.json").read_text()) for stage in (first, second)]
    losses = [[point["loss"] for point in curve if "loss" in point] for curve in curves]
    assert losses[0] != losses[1]  # sums of two halves: their last digits tell that there were two
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


# ---- slow: a sweep --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_drivers_do_no_work_twice(nodes: Nodes, experiment_file: Path, tmp_path: Path):
    arguments = ["run", experiment_file, "--runs-dir", tmp_path, "--set", ARMS, *nodes.options()]
    drivers = [start(*arguments) for _ in range(2)]
    told = [driver.communicate(timeout=1200)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    built = [
        line.split("]")[1].split("  ")[0].strip() for text in told for line in text.splitlines() if " s on 127." in line
    ]
    assert sorted(built) == sorted(set(built))
    assert len(built) == 8


@pytest.mark.slow
def test_a_sweep_whose_machines_die_ends_with_the_local_engines_bytes(
    experiment_file: Path, tmp_path: Path, causal_model: Callable[[str], Path]
):
    """24 cells on four nodes, of which two die on the way."""
    sweep = ["sweep", experiment_file, "--set", ARMS, "--grid", "seed=0,1,2,3,4,5", "--grid", "method=xent,logconf"]
    sweep += ["--grid", "strong.lr=1e-2,3e-3"]
    four = Nodes(4)
    process = start(*sweep, "--runs-dir", tmp_path / "ray", *four.options())
    stages = tmp_path / "ray" / "small" / "stages"
    for address, finished in (("127.0.0.3", 8), ("127.0.0.5", 30)):
        while len(list(stages.glob(f"*-*/{MANIFEST}"))) < finished:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.5)
        four.kill(address)
    _, errors = process.communicate(timeout=3000)
    assert process.returncode == 0, errors
    four.cluster.shutdown()
    w2s(*sweep, "--runs-dir", tmp_path / "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    cells = sorted((tmp_path / "local/small/cells").iterdir())
    assert len(cells) == 24
    for cell in cells:
        assert numbers(tmp_path / "ray/small/cells" / cell.name / "report.json") == numbers(cell / "report.json")
