"""Wheel and sdist hold all that the checkout has, and in an empty environment the wheel does what the checkout does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = ("w2s_tasks", "trainers", "harness_configs")
NOT_SHIPPED = {".github", ".ci", ".gitignore", ".pre-commit-config.yaml"}
"""What a checkout has for itself; the sdist has all the rest."""

pytestmark = pytest.mark.pypi  # the build backend comes from the package index


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def _tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("what belongs into the sdist is what git tracks; this is no checkout")
    return {name for name in listed.stdout.split() if name.split("/")[0] not in NOT_SHIPPED}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, the wheel that is made from it, and the wheel that is made from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", out / "from_sdist", ROOT, cwd=out)
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", out / "direct", ROOT, cwd=out)
    (sdist,) = (out / "from_sdist").glob("*.tar.gz")
    (wheel,) = (out / "from_sdist").glob("*.whl")
    (direct,) = (out / "direct").glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "direct": direct}


def _contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(built: dict[str, Path]):
    held = {name for name in _contents(built["wheel"]) if ".dist-info/" not in name}
    assert held == {name for name in _tracked() if name.split("/")[0] in PACKAGES}
    for needed in (
        "w2s_tasks/tasks/sst2/w2s_sst2.yaml",
        "w2s_tasks/tasks/_binary_yaml",
        "harness_configs/eval/openai.yaml",
        "harness_configs/experiments/quickstart.yaml",
        "trainers/report/templates/style.html",
        "trainers/templates/new_plugin/my_method.py.in",
        "trainers/py.typed",
    ):
        assert needed in held


def test_the_sdist_holds_the_documents_scripts_and_tests_too(built: dict[str, Path]):
    with tarfile.open(built["sdist"]) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    # hatchling always ships .gitignore, because it decides what else is shipped.
    assert held - {"PKG-INFO", ".gitignore"} == _tracked()
    assert {"SECURITY.md", "LICENSE", "constraints.txt", "scripts/test", "tests/conftest.py"} <= held


def test_a_wheel_made_from_the_sdist_is_the_wheel_made_from_the_checkout(built: dict[str, Path]):
    assert _contents(built["wheel"]) == _contents(built["direct"])


def test_the_metadata_say_what_is_needed(built: dict[str, Path]):
    with zipfile.ZipFile(built["wheel"]) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        lines = archive.read(name).decode().splitlines()
        (entries,) = (n for n in archive.namelist() if n.endswith("/entry_points.txt"))
        points = archive.read(entries).decode()
    assert "Requires-Python: >=3.11" in lines
    needed = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist")]
    assert all(">=" in str(r.specifier) for r in needed)  # a bound that scripts/test_lowest tests
    assert "w2s = trainers.cli:main" in points
    assert "w2s-hf = w2s_tasks.models.packed_hf:W2SHF" in points


ENTRY_POINTS = """\
import importlib.metadata, pathlib, w2s_tasks
for point in importlib.metadata.entry_points(group="lm_eval.models"):
    if point.name.startswith("w2s-"):
        print(point.name, point.load().__name__)
print("site-packages" in str(pathlib.Path(w2s_tasks.__file__)))
"""


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_in_an_empty_environment(built: dict[str, Path], tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=True)
    python, w2s, lm_eval = (tmp_path / "env" / "bin" / name for name in ("python", "w2s", "lm_eval"))
    pinned = ("-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    _run(python, *pinned, "torch", cwd=tmp_path)
    _run(python, *pinned, f"{built['wheel']}[report]", cwd=tmp_path)
    _run(python, "-m", "pip", "check", cwd=tmp_path)
    found = _run(python, "-c", ENTRY_POINTS, cwd=tmp_path).stdout.splitlines()
    assert sorted(found) == [
        "True",
        "w2s-chat W2SChat",
        "w2s-classifier W2SClassifier",
        "w2s-hf W2SHF",
        "w2s-recorded Recorded",
        "w2s-tinker W2STinker",
        "w2s-vllm W2SVLLM",
    ]

    # Task YAML: our command's, and the stock one's by folder.
    assert "w2s_ethics_all" in _run(w2s, "tasks", cwd=tmp_path).stdout
    folder = _run(w2s, "tasks", "--path", cwd=tmp_path).stdout.strip()
    stock = [lm_eval, "run", "--include_path", folder, "--model", "dummy", "--tasks", "w2s_ethics_probe_justice"]
    assert "w2s_ethics_probe_justice" in _run(*stock, "--limit", "4", cwd=tmp_path).stdout

    # Evaluation YAML: every shipped one is read; one is run on a tiny part, with the model that needs no weights.
    configs = sorted(Path(folder).parents[1].glob("harness_configs/eval/*.yaml"))
    assert len(configs) == len(list((ROOT / "harness_configs" / "eval").glob("*.yaml")))
    probe = ["--model", "dummy", "--model_args", "", "--tasks", "w2s_ethics_probe", "--limit", "2", "--num_fewshot", "0"]
    _run(w2s, "eval", "--config", configs[0], *probe, "--output_path", "results", cwd=tmp_path)
    (result,) = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(result.read_text())["n-samples"]["w2s_ethics_probe_justice"]["effective"] == 2

    # Experiment YAML by name, and the templates of the report and the model cards.
    assert "quickstart" in _run(w2s, "plan", "quickstart", cwd=tmp_path).stdout
    small = ["--set", "split.limit={weak: 32, transfer: 32}", "--set", "evaluate.limit=20", "--set", "safety.limit=2"]
    done = _run(w2s, "run", "quickstart", "--runs-dir", "runs", *small, cwd=tmp_path)
    run = tmp_path / "runs" / "quickstart"
    assert done.stdout.strip().splitlines()[-1] == f"report: {run / 'report.json'}"
    assert (run / "report.html").read_text().count("<svg") >= 2
    assert list((run / "model_cards").glob("*.md"))
    assert list((run / "tables").glob("*.csv"))
    _run(w2s, "report", run, run, "--out", "comparison.html", cwd=tmp_path)
    assert "<svg" in (tmp_path / "comparison.html").read_text()

    # A method of one's own: begun, tested, compared.
    _run(w2s, "init", "my_method", cwd=tmp_path)
    own = tmp_path / "my_method"
    _run(python, *pinned, "pytest", cwd=tmp_path)
    assert "4 passed" in _run(python, "-m", "pytest", cwd=own).stdout
    done = _run(w2s, "run", "experiment.yaml", "--plugin", "my_method.py", *small[:4], cwd=own)
    assert "student, my_method" in done.stdout
