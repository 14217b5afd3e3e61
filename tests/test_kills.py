"""SIGKILL at every stage boundary, between a checkpoint's files, and at random times: the run goes on and ends equal."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from conftest import write_experiment
from watched_run import REPORT, STEP, Moment, Watched, content, numbers, steady

from trainers.config.reading import load
from trainers.flow.run import open_run

pytestmark = pytest.mark.slow

SETS = (
    "arms=[student]",
    "weak.epochs=12",
    "strong.epochs=6",
    "evaluate.limit=20",
    "safety={tasks: [w2s_ethics_probe_justice], limit: 6, num_fewshot: 0}",
)
TRAINED = {"train weak, seed 0", "train student, seed 0"}


@dataclass
class Kill:
    """One SIGKILL: in which run folder, how its time was chosen, and what the process was at."""

    run: str
    chosen: str
    stage: str
    moment: str
    training: bool


@dataclass
class Undisturbed:
    """The experiment, and one run of it that nothing disturbed."""

    config: Path
    folder: Path
    titles: dict[str, str]
    """What a stage does, by kind-key, in the order of the run."""
    moments: list[Moment]
    seconds: dict[str, float]
    """How long each stage took, the training in it, and the report."""
    record: list[Kill] = field(default_factory=list)

    def arguments(self, runs: Path) -> list[str]:
        """Of `w2s`."""
        return ["run", str(self.config), "--runs-dir", str(runs), "--quiet", *(w for s in SETS for w in ("--set", s))]


def places(moment: Moment, reporting: bool) -> list[str]:
    """Where in the run a moment is: a stage, and the training in it; or the report."""
    if moment.stage:
        return [moment.stage, f"{STEP} {moment.stage}"] if moment.verb == STEP else [moment.stage]
    return [REPORT] if reporting or moment.verb == REPORT else []


def summary(kills: list[Kill]) -> str:
    """One line: how many, and where."""
    counted = Counter(k.stage for k in kills)
    parts = ", ".join(f"{n} in {stage}" for stage, n in counted.most_common())
    return f"{len(kills)} kills, {sum(k.training for k in kills)} of them between two steps of a training: {parts}"


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, causal_model: Callable[[str], Path]
) -> Iterator[Undisturbed]:
    """The undisturbed run; at the end the record of all kills is printed, and written where W2S_TEST_RECORD says."""
    root = tmp_path_factory.mktemp("kills")
    config = write_experiment(root, encoder_folder, causal_model("llama"))
    flow = open_run(load(str(config), list(SETS))[0], root / "whole")
    titles = {f"{step.kind}-{flow.key(step)}": step.title for step in flow.layout.steps.values()}
    found = Undisturbed(config, flow.folder, titles, [], {})
    process = Watched(found.arguments(root / "whole"), flow.folder, root / "output.txt")
    began: dict[str, float] = {}
    for moment in process.follow():
        found.moments.append(moment)
        for place in places(moment, REPORT in began):
            began.setdefault(place, time.monotonic())
            found.seconds[place] = time.monotonic() - began[place]
    assert process.ended() == 0, (root / "output.txt").read_text()
    assert sorted(p.name for p in (flow.folder / "stages").glob("[!.]*")) == sorted(titles)
    yield found
    print(f"\n{summary(found.record)}")  # noqa: T201
    if folder := os.environ.get("W2S_TEST_RECORD"):
        text = json.dumps({"summary": summary(found.record), "kills": [asdict(k) for k in found.record]}, indent=1)
        (Path(folder) / "kills.json").write_text(text, encoding="utf-8")


def place_of(moments: list[Moment], titles: dict[str, str]) -> tuple[str, str, bool]:
    """What a process that told these moments was at: the stage's title, the moment, and whether it was training."""
    if not moments:
        return "start", "before its first operation", False
    if any(m.verb == REPORT for m in moments):
        return REPORT, str(moments[-1]), False
    inside = [m for m in moments if m.stage]
    if not inside:
        return "start", str(moments[-1]), False
    last = inside[-1]
    own = [m for m in inside if m.stage == last.stage]
    training = any(m.verb == STEP for m in own) and "/checkpoints/" in last.path
    return titles[last.stage or ""], str(last), training


def manifests(run: Path) -> dict[str, tuple[bytes, int, int]]:
    """Of every whole stage: its manifest, when it was written, and which file it is."""
    paths = (run / "stages").glob("[!.]*/manifest.json")
    return {p.parent.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def names(run: Path) -> set[str]:
    """Every file and folder of a run but its locks."""
    found = {steady(p.relative_to(run).as_posix()) for p in run.rglob("*")}
    return {name for name in found if "/.lock-" not in name}


class Chain:
    """One run folder whose process is killed again and again, until the run is let end."""

    def __init__(self, whole: Undisturbed, runs: Path) -> None:
        self.whole, self.runs, self.folder = whole, runs, runs / "small"
        self.output = runs.with_name(f"{runs.name}.txt")
        self.kills: list[Kill] = []

    def start(self, stop: str | None = None, after: float | None = None) -> Watched:
        """A process that goes on with the run."""
        return Watched(self.whole.arguments(self.runs), self.folder, self.output, stop, after)

    def kill(self, process: Watched, chosen: str, before: dict[str, tuple[bytes, int, int]]) -> Kill | None:
        """Kill it and look at what is there; None where it had come to its end."""
        code = process.kill()
        self.look(process.moments, before)
        if code == 0:
            return None
        assert code == -signal.SIGKILL, self.output.read_text()[-3000:]
        kill = Kill(self.runs.name, chosen, *place_of(process.moments, self.whole.titles))
        self.kills.append(kill)
        self.whole.record.append(kill)
        return kill

    def look(self, moments: list[Moment], before: dict[str, tuple[bytes, int, int]]) -> None:
        """No stage that was whole was touched."""
        assert not {m.stage for m in moments} & set(before)
        after = manifests(self.folder)
        assert {name: after.get(name) for name in before} == before

    def end(self) -> None:
        """Let it end; everything is as in the undisturbed run."""
        before = manifests(self.folder)
        process = self.start()
        for _ in process.follow():
            pass
        assert process.ended() == 0, self.output.read_text()[-3000:]
        self.look(process.moments, before)
        assert content(self.folder) == content(self.whole.folder)
        assert numbers(self.folder) == numbers(self.whole.folder)
        assert names(self.folder) == names(self.whole.folder)


def expression(moment: Moment) -> str:
    """A regular expression for a moment in any run."""
    return f"^{re.escape(f'{moment.verb} {steady(moment.path)}')}$".replace(r"\.tmp$", r"\.[0-9a-f]{8}\.tmp$")


def boundaries(whole: Undisturbed) -> Iterator[Moment]:
    """What ends each stage, all that writes each training's third checkpoint, and the report with its first table."""
    for stage in whole.titles:
        own = [m for m in whole.moments if m.stage == stage and m.verb != STEP]
        yield Moment("mkdir", f"stages/.work-{stage}")
        third, fourth = sorted({int(n) for m in own for n in re.findall(r"checkpoint-(\d+)", m.path)})[2:4] or (0, 0)
        if third:
            begin, end = (next(i for i, m in enumerate(own) if f"checkpoint-{n}" in m.path) for n in (third, fourth))
            yield from dict.fromkeys(own[begin:end])
        built = r"\.curves|model\.json|\.manifest|rmtree checkpoints$|rename its folder"
        yield from [m for m in own if re.search(built, str(m))]
    begin = next(i for i, m in enumerate(whole.moments) if m.verb == REPORT)
    yield from dict.fromkeys(m for m in whole.moments[begin:] if "tables/" not in m.path or "arms.csv" in m.path)


def test_killed_before_each_operation_that_ends_a_stage_a_checkpoint_or_the_report(undisturbed: Undisturbed, tmp_path: Path):
    chain = Chain(undisturbed, tmp_path / "boundaries")
    for moment in boundaries(undisturbed):
        before = manifests(chain.folder)
        process = chain.start(expression(moment))
        for _ in process.follow():
            pass
        assert process.stopped, f"never came to: {moment.stage} {moment}\n{chain.output.read_text()[-3000:]}"
        chain.kill(process, "before an operation", before)
    chain.end()
    stages = Counter(kill.stage for kill in chain.kills)
    assert set(stages) == {*undisturbed.titles.values(), REPORT}
    assert len(chain.kills) >= 50
    assert all(stages[title] >= 10 for title in TRAINED)


def kill_inside(chain: Chain, place: str, rng: random.Random) -> None:
    """Kill a run at a random time after it began a stage, a training, or the report; not where that is done already."""
    before = manifests(chain.folder)
    if place.removeprefix(f"{STEP} ") in before:
        return
    began = {REPORT: "^report ", STEP: rf"^step stages/\.work-{place.removeprefix(f'{STEP} ')}/"}
    expected = began.get(place.split()[0], rf"^mkdir stages/\.work-{place}$")
    process = chain.start(expected, rng.uniform(0, chain.whole.seconds[place]))
    for _ in process.follow():
        pass
    assert any(place in places(m, reporting=False) for m in process.moments), chain.output.read_text()[-3000:]
    kill = chain.kill(process, "at a random time", before)
    if kill is None or kill.stage != chain.whole.titles.get(place.removeprefix(f"{STEP} "), REPORT):
        chain.whole.seconds[place] /= 2  # too late: the machine is quicker now


def test_killed_at_random_times_inside_stages(undisturbed: Undisturbed, tmp_path: Path):
    rng = random.Random(7)
    kills: list[Kill] = []
    wanted = {*TRAINED, "labels of weak, seed 0", "evaluate weak, seed 0", REPORT}
    for number in range(8):
        chain = Chain(undisturbed, tmp_path / f"random{number}")
        for stage, title in undisturbed.titles.items():
            for place in (stage, *[f"{STEP} {stage}"] * 4) if title in TRAINED else (stage,):
                kill_inside(chain, place, rng)
        kill_inside(chain, REPORT, rng)
        chain.end()
        kills += chain.kills
        stages = Counter(kill.stage for kill in kills)
        if sum(kill.training for kill in kills) >= 10 and wanted <= set(stages):
            return
    raise AssertionError(stages)


CUT = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "*.safetensors", "*config.json")


@pytest.mark.parametrize("title", sorted(TRAINED))
def test_a_checkpoint_that_a_power_cut_left_half_written_is_passed_over(
    undisturbed: Undisturbed, tmp_path: Path, title: str
):
    chain = Chain(undisturbed, tmp_path / "cut")
    (stage,) = (stage for stage, t in undisturbed.titles.items() if t == title)
    rotation = next(m for m in undisturbed.moments if m.stage == stage and m.verb == "rmtree")
    checkpoints = chain.folder / "stages" / f".work-{stage}" / "checkpoints"
    for name in CUT:
        before = manifests(chain.folder)
        process = chain.start(expression(rotation))  # the newest is written, the oldest about to go
        told = list(process.follow())
        assert process.stopped
        kill = chain.kill(process, f"before an operation; then {name} of the newest checkpoint was cut", before)
        assert kill is not None
        assert kill.training
        *_, second, newest = sorted(checkpoints.iterdir(), key=lambda p: int(p.name.split("-")[1]))
        if name != CUT[0]:  # every start but the first went on from the second newest
            first_step = next(m for m in told if m.stage == stage and m.verb == STEP)
            assert first_step.path.endswith(f"/step-{second.name.split('-')[1]}")
        (file,) = newest.glob(name)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    chain.end()


def test_a_real_process_is_killed_in_several_stages(undisturbed: Undisturbed, tmp_path: Path):
    """As the tests above, but each start is a new `python -m trainers.cli`; where it is at is looked up on the disk."""
    chain = Chain(undisturbed, tmp_path / "real")
    command = [sys.executable, "-m", "trainers.cli", *undisturbed.arguments(chain.runs)]
    rng = random.Random(11)
    for stage, title in undisturbed.titles.items():
        before = manifests(chain.folder)
        work = chain.folder / "stages" / f".work-{stage}"
        if title not in {*TRAINED, "evaluate student, seed 0"} or stage in before:
            continue
        with chain.output.open("a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        begun = "checkpoints/checkpoint-*" if title in TRAINED else "checkpoints"
        while process.poll() is None and not list(work.glob(begun)):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL, chain.output.read_text()[-3000:]
        chain.look([], before)
        at = [undisturbed.titles[p.name.removeprefix(".work-")] for p in work.parent.glob(".work-*")]
        trained = at == [title] and title in TRAINED
        chain.kills.append(Kill("real", "at a random time", at[0] if at else "between stages", "", trained))
    undisturbed.record.extend(chain.kills)
    assert {kill.stage for kill in chain.kills} & TRAINED
    chain.end()
