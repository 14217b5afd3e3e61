"""`scripts/gpu_check` leaves no section's failure to another one, says why it skips, and runs as a whole on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from bench.gpu_check import ROOT, Section, ended, paragraph, platform, sections

TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2
@pytest.mark.skip(reason="needs two GPUs")
def test_none(): pass
"""


def test_every_section_ends_in_its_own_way(tmp_path: Path):
    (tmp_path / "test_it.py").write_text(TESTS)
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path / "test_it.py")]
    comparison = json.dumps({"ours_s": 1.0, "peer_s": 3.0, "ratio": 3.0, "max_abs_diff": 1e-6})
    asked = [
        Section("a", ["-c", f"print('{comparison}')"]),
        Section("b", ["-c", "raise SystemExit('no kernel')"]),
        Section("c", ["-c", "pass"], needs="no_such_package"),
        Section("d", ["-c", "import time; time.sleep(60)"], seconds=0.5),
        Section("e", pytest_),
        Section("f", ["-c", "import os; print(os.environ['W2S_TEST_DEVICE'])"], environment={"W2S_TEST_DEVICE": "cuda:1"}),
    ]
    found = {one.title: ended(one, tmp_path) for one in asked}
    assert {name: one.status for name, one in found.items()} == {
        "a": "passed",
        "b": "failed",
        "c": "skipped",
        "d": "failed",
        "e": "failed",
        "f": "passed",
    }
    assert found["a"].found["ratio"] == 3.0
    assert "no kernel" in found["b"].reason
    assert found["c"].reason == "no_such_package is not installed"
    assert "not at its end after" in found["d"].reason
    assert {k: found["e"].found[k] for k in ("passed", "skipped", "failed")} == {"passed": 1, "skipped": 1, "failed": 1}
    assert any("assert 1 == 2" in reason for reason in found["e"].found["reasons"])
    assert found["f"].found == ["cuda:1"]
    text = paragraph(platform(), list(found.values()))
    for part in (
        "a: 1.00 s against 3.00 s (3.0x)",
        "b **failed**",
        "c skipped (no_such_package",
        "1 tests passed, 1 skipped, 1",
    ):
        assert part in text


@pytest.mark.parametrize("quick", [True, False])
def test_what_sections_run_is_there(quick: bool):
    for section in sections("cuda", quick=quick):
        files = [word for word in section.arguments if word.endswith(".py")]
        modules = [word for word in section.arguments if word.startswith("bench.")]
        assert all(Path(file).is_file() for file in files)
        assert all((ROOT / "scripts" / f"{module.replace('.', '/')}.py").is_file() for module in modules)


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path: Path):
    command = [str(ROOT / "scripts" / "gpu_check"), "--quick", "--device", "cpu", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["title"]: one for one in json.loads((tmp_path / "out.json").read_text())["sections"]}
    assert found["equality, training, memory"]["found"]["passed"] >= 30
    assert found["evaluation"]["found"]["max_abs_diff"] < 1e-4
    assert found["training, chat"]["found"]["max_abs_diff"] < 1e-3
