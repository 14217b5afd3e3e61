"""What someone with a GPU runs after the install: equality, training, speed, memory; a JSON and a paragraph for the manual.

Each section is a command of its own, so that one which dies or takes too long leaves the others alone; what is not installed
is skipped with the reason. The tests are `tests/test_cuda.py`, the speeds those of `scripts/bench_eval` and `bench_train`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.comparison import run, say
from w2s_tasks import __version__, machine
from w2s_tasks.errors import UserError

ROOT = Path(__file__).parent.parent.parent
LIBRARIES = ("torch", "transformers", "peft", "trl", "lm_eval", "bitsandbytes", "liger_kernel", "unsloth", "vllm")
TAIL = 1500
"""Characters of a failed command's end that are kept."""


@dataclass(frozen=True)
class Section:
    """A command, and what it needs."""

    title: str
    arguments: list[str]
    """Behind `python`."""
    needs: str = ""
    """A package; empty for none."""
    seconds: float = 600.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """How a section ended."""

    title: str
    status: str
    """passed, failed, or skipped."""
    seconds: float
    found: Any = None
    """A benchmark's figures, or the number of tests by outcome."""
    reason: str = ""
    """Why it was skipped, or how it failed."""


def sections(device: str, *, quick: bool) -> Iterator[Section]:
    """All, in the order in which they teach most."""
    tests = ["-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    on_device = {"W2S_TEST_DEVICE": device}
    yield Section("doctor", ["-m", "trainers.cli", "doctor"], seconds=120)
    yield Section("equality, training, memory", [*tests, str(ROOT / "tests" / "test_cuda.py")], environment=on_device)
    if quick:
        small = ["--model", "random:tiny", "--repeats", "1"]
        evaluation = ["--task", "w2s_ethics_probe_justice", "--docs", "8", "--shots", "4", "--peer-batch", "4", *small]
        training = ["--rows", "16", "--batch-size", "8", "--heldout", "8", *small]
        yield Section("evaluation", ["-m", "bench.eval", *evaluation])
        yield Section("training", ["-m", "bench.train", "--format", "plain", "--peer-batch", "8", *training])
        yield Section(
            "training, chat", ["-m", "bench.train", "--format", "chat", "--peer-batch", "8", *training], needs="trl"
        )
    else:
        large = ["--model", "random:1b", "--dtype", "bfloat16", "--repeats", "2"]
        evaluation = ["--task", "w2s_ethics_probe_justice", "--shots", "32", "--peer-batch", "8,16,32", *large]
        yield Section("evaluation", ["-m", "bench.eval", *evaluation])
        for name in ("plain", "chat"):
            arguments = ["-m", "bench.train", "--format", name, "--rows", "128", "--peer-batch", "8,16,32", *large]
            yield Section(f"training, {name}", arguments, needs="trl" if name == "chat" else "")
    served = [*tests, "-m", "vllm", str(ROOT / "tests" / "test_vllm.py")]
    yield Section("vLLM", served, needs="vllm", environment={"W2S_VLLM_PYTHON": sys.executable})


def _tests(path: Path) -> dict[str, Any]:
    """Outcomes of a JUnit file, and why tests were skipped or failed."""
    cases = list(ET.parse(path).getroot().iter("testcase"))  # noqa: S314 - written by pytest a moment ago
    outcomes = {"passed": 0, "skipped": 0, "failed": 0}
    reasons: dict[str, int] = {}
    for case in cases:
        bad = [part for part in case if part.tag in ("failure", "error")]
        skipped = [part for part in case if part.tag == "skipped"]
        outcomes["failed" if bad else "skipped" if skipped else "passed"] += 1
        for part in bad:
            reasons[f"{case.get('name')}: {str(part.get('message'))[:300]}"] = 1
        for part in skipped:
            text = str(part.get("message"))
            reasons[text] = reasons.get(text, 0) + 1
    return outcomes | {"reasons": reasons}


def ended(section: Section, folder: Path) -> Finding:
    """Run a section to its end, or to the end of its time."""
    if section.needs and importlib.util.find_spec(section.needs) is None:
        return Finding(section.title, "skipped", 0.0, reason=f"{section.needs} is not installed")
    start, junit = time.perf_counter(), folder / "junit.xml"
    junit.unlink(missing_ok=True)
    is_tests = "pytest" in section.arguments
    command = [sys.executable, *section.arguments, *([f"--junitxml={junit}"] if is_tests else [])]
    environment = dict(os.environ) | dict(section.environment)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=section.seconds, env=environment, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return Finding(section.title, "failed", section.seconds, reason=f"not at its end after {section.seconds:.0f} s")
    seconds = round(time.perf_counter() - start, 1)
    found: Any = None
    if is_tests and junit.is_file():
        found = _tests(junit)
    elif not is_tests and done.returncode == 0:
        found = _figures(done.stdout)
    status = "passed" if done.returncode == 0 else "failed"
    return Finding(section.title, status, seconds, found, "" if status == "passed" else (done.stdout + done.stderr)[-TAIL:])


def _figures(text: str) -> Any:
    """A benchmark's JSON, or the lines of a command that has none."""
    try:
        return json.loads(text)
    except ValueError:
        return text.splitlines()


def platform() -> dict[str, Any]:
    """What it ran on."""
    import torch

    found: dict[str, Any] = {"w2s": __version__, "python": sys.version.split()[0], **machine.versions(LIBRARIES)}
    if torch.cuda.is_available():
        shape = torch.cuda.get_device_properties(0)
        found |= {"gpu": shape.name, "gpus": torch.cuda.device_count(), "gpu_gb": round(shape.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda or torch.version.hip
    return found


def paragraph(on: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    """For docs/performance.md."""
    device = f"{on['gpus']} x {on['gpu']} ({on['gpu_gb']:g} GB)" if "gpu" in on else "a CPU"
    parts = [f"On {device}, torch {on.get('torch')}, transformers {on.get('transformers')}:"]
    for one in findings:
        figures = one.found if isinstance(one.found, dict) else {}
        if one.status == "skipped":
            parts.append(f"{one.title} skipped ({one.reason});")
        elif "passed" in figures:
            parts.append(
                f"{one.title}: {figures['passed']} tests passed, {figures['skipped']} skipped, {figures['failed']} failed;"
            )
        elif one.status == "failed":
            parts.append(f"{one.title} **failed**;")
        elif "ratio" in figures:
            parts.append(
                f"{one.title}: {figures['ours_s']:.2f} s against {figures['peer_s']:.2f} s ({figures['ratio']:.1f}x), "
                f"largest difference {figures['max_abs_diff']:.2g};"
            )
    return " ".join(parts).rstrip(";") + ". (`scripts/gpu_check`)"


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu to see that the check itself runs.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny models: minutes on a CPU.")] = False,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("gpu_check.json"),
    only: Annotated[list[str] | None, typer.Option(help="Sections whose title begins so (repeatable).")] = None,
) -> None:
    """Check an installation on a GPU: equality with hf and with a CPU, training, speed, memory.

    \b
    scripts/gpu_check
    scripts/gpu_check --quick --device cpu --only equality
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("torch sees no GPU. Install a build of torch for it, or use --device cpu --quick.")
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for section in sections(device, quick=quick):
            if only and not any(section.title.startswith(name) for name in only):
                continue
            say(f"{section.title} ...")
            finding = ended(section, Path(folder))
            findings.append(finding)
            say(f"{section.title}: {finding.status} {finding.reason[-300:]}")
    on = platform()
    out.write_text(json.dumps({"machine": on, "sections": [asdict(one) for one in findings]}, indent=2), encoding="utf-8")
    typer.echo(paragraph(on, findings))
    typer.echo(f"figures: {out.resolve()}")
    if any(one.status == "failed" for one in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
