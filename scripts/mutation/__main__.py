"""Mutants: every operator, constant and branch that decides a number is changed once, and a test has to fail.

A mutant that no test notices lives. Those known to live are named with their reasons in `living.yaml`; another one makes
this command fail, and so does a share of 5 % of all.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mutation import trial
from mutation.mutants import Mutant, mutants_of
from mutation.tests_of import TESTS
from w2s_tasks import machine

ROOT = Path(__file__).resolve().parents[2]
LIVING = Path(__file__).with_name("living.yaml")
MAY_LIVE = 0.05
"""Share of all mutants that may live, the named ones included."""


@dataclass(frozen=True)
class Outcome:
    """A module's mutants: what became of each, and the seconds that took."""

    mutants: list[Mutant]
    fates: list[str]
    seconds: float

    @property
    def alive(self) -> list[Mutant]:
        """Those that no test noticed."""
        return [mutant for mutant, fate in zip(self.mutants, self.fates, strict=True) if fate == "alive"]


def named() -> dict[str, dict[str, str]]:
    """The mutants known to live: for each module a reason by the mutant's name."""
    listed = yaml.safe_load(LIVING.read_text(encoding="utf-8")) or {}
    return {
        module: {name: group["why"] for group in groups for name in group["mutants"]} for module, groups in listed.items()
    }


def tried(module: str, mutants: list[Mutant], jobs: int) -> Outcome:
    """Run a module's tests on each of its mutants."""
    began = time.monotonic()
    fates = trial.fates(ROOT, mutants, TESTS[module], jobs)
    return Outcome(mutants, fates, time.monotonic() - began)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="e.g. trainers/training/losses.py; all by default")
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants at random, over all the modules")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--lines", metavar="A-B", help="only the mutants of these lines, with one module")
    parser.add_argument("--jobs", type=int, default=machine.processes(2.5e9), help="forks at a time")
    parser.add_argument("--list", action="store_true", help="name the mutants and try none")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.modules) - set(TESTS))
    if unknown:
        parser.error(f"{unknown[0]}: no tests are named for it in scripts/mutation/tests_of.py")
    return options


def _chosen(options: argparse.Namespace) -> dict[str, list[Mutant]]:
    every = {module: mutants_of(ROOT, module) for module in options.modules or TESTS}
    if options.lines:
        first, _, last = options.lines.partition("-")
        lines = range(int(first), int(last or first) + 1)
        every = {module: [m for m in mutants if m.line in lines] for module, mutants in every.items()}
    if options.sample is not None:
        pool = [mutant for mutants in every.values() for mutant in mutants]
        drawn = random.Random(options.seed).sample(pool, min(options.sample, len(pool)))  # noqa: S311 - a seeded sample
        every = {module: [m for m in mutants if m in drawn] for module, mutants in every.items()}
    return {module: mutants for module, mutants in every.items() if mutants}


def _tell(module: str, outcome: Outcome, reasons: dict[str, str]) -> int:
    """Print a module's line and its mutants that live without a reason; returns their number."""
    alive = outcome.alive
    new = [mutant for mutant in alive if mutant.name not in reasons]
    count, killed, known = len(outcome.mutants), len(outcome.mutants) - len(alive), len(alive) - len(new)
    print(f"{module:<40} {count:>8} {killed:>7} {known:>6} {len(new):>4} {outcome.seconds:>8.0f}", flush=True)
    for mutant in new:
        print(f"  {mutant.module}:{mutant.line}\n      - {mutant.name!r}", flush=True)
    there = {mutant.name for mutant in mutants_of(ROOT, module)} if reasons else set()
    for name in sorted(set(reasons) - there):
        print(f"  living.yaml names a mutant that is no longer there: {name}")
    return len(new)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants and tell which live; 0 where all that do are named and fewer than 5 % do."""
    options = _options(arguments)
    chosen, reasons = _chosen(options), named()
    if options.list:
        for mutants in chosen.values():
            print(*(f"{m.module}:{m.line} {m.name}" for m in mutants), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that forks are stopped, too
    trial.load_libraries()
    print(f"{'module':<40} {'mutants':>8} {'killed':>7} {'named':>6} {'new':>4} {'seconds':>8}")
    total = alive = new = 0
    for module, mutants in chosen.items():
        outcome = tried(module, mutants, options.jobs)
        new += _tell(module, outcome, reasons.get(module, {}))
        total, alive = total + len(mutants), alive + len(outcome.alive)
    print(f"{alive} of {total} mutants live ({alive / max(total, 1):.1%}), {new} of them without a reason in living.yaml")
    whole = options.sample is None and not options.modules
    return int(bool(new) or (whole and alive >= MAY_LIVE * total))


if __name__ == "__main__":
    sys.exit(main())
