"""The wheel in an empty environment does what the checkout does: YAML, templates and the probe are inside."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.mark.slow
@pytest.mark.pypi
def test_the_wheel_runs_the_quickstart_in_an_empty_environment(tmp_path: Path):
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    venv.create(tmp_path / "env", with_pip=True)
    python, w2s = (str(tmp_path / "env" / "bin" / name) for name in ("python", "w2s"))
    constraints = str(ROOT / "constraints.txt")
    _run(python, "-m", "pip", "install", "--quiet", "-c", constraints, "torch", cwd=tmp_path)
    _run(python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[report]", cwd=tmp_path)
    assert "w2s_ethics_all" in _run(w2s, "tasks", cwd=tmp_path).stdout
    small = ["--set", "split.limit={weak: 32, transfer: 32}", "--set", "evaluate.limit=20", "--set", "safety.limit=2"]
    done = _run(w2s, "run", "quickstart", "--runs-dir", "runs", *small, cwd=tmp_path)
    assert done.stdout.strip().splitlines()[-1] == f"report: {tmp_path / 'runs' / 'quickstart' / 'report.json'}"
    assert (tmp_path / "runs" / "quickstart" / "report.html").read_text().count("<svg") >= 2
