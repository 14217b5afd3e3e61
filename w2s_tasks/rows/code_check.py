"""Does this function pass its tests? Problems with a right program and wrong ones, which `w2s build` makes once.

The wrong ones are mutants (`w2s_tasks.rows.mutants`) that ran, in the sandbox, until a test's assertion failed. What passes
is dropped, and so is what ends otherwise: what runs out of time or memory depends on the machine, and an error that is
raised is often to be seen without understanding. Nothing is run when the task is asked.
"""

from __future__ import annotations

import itertools
import json
import platform
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
from filelock import FileLock
from tqdm import tqdm

from w2s_tasks import machine, sandbox
from w2s_tasks.code_scope import code_hash
from w2s_tasks.errors import MissingDataError, UserError, nearest
from w2s_tasks.rows.assets import cache_dir, sha256_file
from w2s_tasks.rows.forms import draws
from w2s_tasks.rows.mutants import Mutant, mutants
from w2s_tasks.rows.programs import Problem, humaneval_problems, mbpp_problems
from w2s_tasks.rows.sources import Splits, digest

Built = dict[str, Any]
"""A problem with its programs: name, statement, split, right, and wrong, a list of operator and program."""

SETS: Mapping[str, Callable[[], list[Problem]]] = {"code_check": humaneval_problems, "code_check_mbpp": mbpp_problems}
SEED = 0
WRONG = 4
"""Wrong programs kept a problem, at most."""
TRIES = 40
"""Mutants run a problem, at most."""
LIMITS = sandbox.Limits(seconds=2)
FILE, MANIFEST = "problems.jsonl", "w2s-built.json"


# --- building ------------------------------------------------------------------------------------------------------------


def in_turn(found: list[Mutant], *texts: str) -> list[Mutant]:
    """Mutants in seeded order, one of each operator after the other, so that the frequent ones don't crowd out the rest."""
    rng = draws(SEED, "mutants", *texts)
    of: dict[str, list[Mutant]] = {}
    for mutant in found:
        of.setdefault(mutant.operator, []).append(mutant)
    kinds = list(of.values())
    for kind in kinds:
        rng.shuffle(kind)
    rng.shuffle(kinds)
    return [mutant for turn in itertools.zip_longest(*kinds) for mutant in turn if mutant is not None]


def built(problem: Problem, stop: threading.Event) -> Built | None:
    """Run a problem's program and mutants of it; None where the program does not pass, or no mutant fails an assertion."""
    if not problem.function or not sandbox.run(problem.program, problem.tests, LIMITS, problem.function).passed:
        return None
    wrong: list[Mutant] = []
    for mutant in in_turn(mutants(problem.program, problem.function), problem.statement)[:TRIES]:
        if len(wrong) == WRONG or stop.is_set():
            break
        if sandbox.run(mutant.program, problem.tests, LIMITS, problem.function).ended == "AssertionError":
            wrong.append(mutant)
    kept = {"name": problem.name, "statement": problem.statement, "split": problem.split, "right": problem.program}
    return {**kept, "wrong": [asdict(mutant) for mutant in wrong]} if wrong else None


def _recipe(name: str, problems: list[Problem]) -> dict[str, Any]:
    """What a set depends on: the problems, the code that makes it and its seed."""
    texts = json.dumps([asdict(problem) for problem in problems], sort_keys=True)
    return {"name": name, "source": digest(texts)[:16], "code": code_hash([built]), "seed": SEED}


def _folder(recipe: Mapping[str, Any]) -> Path:
    return cache_dir() / "built" / f"{recipe['name']}-{digest(json.dumps(recipe, sort_keys=True))[:12]}"


def _problems(name: str) -> list[Problem]:
    if name not in SETS:
        raise UserError(f"no set '{name}' to build.{nearest(name, SETS)} Known: {', '.join(SETS)}.")
    return SETS[name]()


def _is_whole(folder: Path) -> bool:
    """Whether a set is there as it was built."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["sha256"] == sha256_file(folder / FILE))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def build(name: str) -> tuple[Path, bool]:
    """Build a set, going on where an interrupted build ended; its folder, and whether it was there already.

    Raises:
        UserError: an unknown name, no data, or no sandbox here.
    """
    problems = _problems(name)
    sandbox.check()
    recipe = _recipe(name, problems)
    folder = _folder(recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _is_whole(folder):
            return folder, True
        begun = folder.with_name(f".{folder.name}.begun")
        begun.mkdir(exist_ok=True)
        done = _run_all(problems, begun / FILE)
        found = {
            **recipe,
            "python": platform.python_version(),
            "problems": len(problems),
            "kept": sum(one["built"] is not None for one in done),
            "sha256": sha256_file(begun / FILE),
        }
        (begun / MANIFEST).write_text(json.dumps(found, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        begun.replace(folder)
    return folder, False


def counts(folder: Path) -> tuple[int, int]:
    """Problems of a built set that have a wrong program, and all of them."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest["kept"], manifest["problems"]


def _lines(path: Path) -> list[dict[str, Any]]:
    """What a file of an unfinished build holds; a line that was cut is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _run_all(problems: list[Problem], path: Path) -> list[dict[str, Any]]:
    """Build all problems, in their order, a line each as it is done."""
    done = _lines(path)[: len(problems)]
    stop = threading.Event()
    with path.open("w", encoding="utf-8") as file, ThreadPoolExecutor(machine.cores()) as pool:
        file.writelines(json.dumps(line) + "\n" for line in done)
        left = problems[len(done) :]
        try:
            results = pool.map(lambda problem: built(problem, stop), left)
            bar = tqdm(results, desc="problems", initial=len(done), total=len(problems), unit="", disable=None)
            for problem, result in zip(left, bar, strict=True):
                done.append({"name": problem.name, "built": result})
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
        except BaseException:  # Ctrl-C: what runs ends soon, what waits is not begun
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return done


# --- reading -------------------------------------------------------------------------------------------------------------


def read(name: str) -> list[Built]:
    """The problems of a set that was built from the data and by the code that are here.

    Raises:
        MissingDataError: there is none; the message has the command that builds it.
    """
    folder = _folder(_recipe(name, _problems(name)))
    if not _is_whole(folder):
        others = any(folder.parent.glob(f"{name}-*/{MANIFEST}"))
        why = "was built from other data or by another version" if others else "is not built here"
        raise MissingDataError(
            f"the set {name} {why}; `w2s build {name} --confirm_run_unsafe_code` makes it, once: that runs its problems' "
            "programs, and changed ones, in a sandbox."
        )
    return [line["built"] for line in _lines(folder / FILE) if line["built"]]


def _programs(problem: Built, variants: int) -> Iterator[tuple[str, int, str]]:
    """Program, label and operator of a problem's rows: one by a coin, or the right one and so many wrong ones."""
    rng = draws(SEED, "coin", problem["statement"])
    wrong = [(one["program"], 0, one["operator"]) for one in problem["wrong"]]
    right = (problem["right"], 1, "")
    if variants == 1:
        yield right if rng.random() < 0.5 else wrong[0]
    else:
        chosen = [right, *wrong[: variants - 1]]
        rng.shuffle(chosen)
        yield from chosen


def code_check(problems: str = "code_check", variants: int = 1, **_: Any) -> Splits:
    """Programs of a built set: task_id, problem, program, label (1: passes its tests), operator, w2s_group (the problem).

    Args:
        problems: which set.
        variants: rows a problem. 1: a coin decides between the right program and a wrong one; n: the right one and n - 1
            different wrong ones, fewer where there are not as many.

    Raises:
        MissingDataError: the set is not built.
    """
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for group, problem in enumerate(sorted(read(problems), key=lambda one: digest(one["statement"]))):
        for program, label, operator in _programs(problem, variants):
            row = {"task_id": problem["name"], "problem": problem["statement"], "program": program}
            splits[problem["split"]].append({**row, "label": label, "operator": operator, "w2s_group": group})
    return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
