"""The pins that CI installs are within the bounds that users get, and Python's version is one number everywhere."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def plain(name: str) -> str:
    """A package's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, all extras included."""
    project = PROJECT["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    return [Requirement(r) for r in (*project["dependencies"], *extras)]


def pins() -> dict[str, Version]:
    """constraints.txt."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"constraints.txt: {line} pins nothing"
            assert plain(name) not in found, f"constraints.txt: {name} stands twice"
            found[plain(name)] = Version(version)
    return found


def test_every_requirement_is_pinned_within_its_bounds():
    pinned = pins()
    for requirement in requirements():
        assert plain(requirement.name) in pinned, f"constraints.txt: {requirement.name} is not pinned"
        assert pinned[plain(requirement.name)] in requirement.specifier, str(requirement)


def test_every_requirement_has_a_lower_bound_and_none_an_upper_one():
    for requirement in requirements():
        assert [s.operator for s in requirement.specifier] == [">="], str(requirement)


def test_ci_and_the_scripts_install_what_is_pinned():
    text = (ROOT / "scripts" / "environment").read_text(encoding="utf-8")
    installs = [line for line in text.splitlines() if "pip install" in line and "--upgrade pip" not in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    for script in ("test", "quickstart"):
        assert 'environment"' in (ROOT / "scripts" / script).read_text(encoding="utf-8")


def test_every_pinned_version_runs_on_the_oldest_python():
    """A pin for 3.11.5 and later can't be installed with Debian's 3.11.2: pip finds a conflict there, and only there."""
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=") + ".0"
    asked = {d.name: d.metadata.get("Requires-Python") for d in distributions() if plain(d.name) in pins()}
    assert {"torch", "transformers"} <= {plain(name) for name in asked}
    assert {name: python for name, python in asked.items() if lowest not in SpecifierSet(python or "")} == {}


def test_the_oldest_python_is_the_same_everywhere():
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert lowest == "3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    assert PROJECT["tool"]["mypy"]["python_version"] == lowest
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c]
    assert min(named, key=Version) == lowest
    environment = (ROOT / "scripts" / "environment").read_text(encoding="utf-8")
    assert f"sys.version_info < ({lowest.replace('.', ', ')})" in environment
    assert f"Python >= {lowest}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{lowest} or newer" in (ROOT / "w2s_tasks" / "doctor.py").read_text(encoding="utf-8")


def test_the_workflow_runs_the_tests_on_every_python_that_is_named():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c]
    tests, lowest = workflow["jobs"]["tests"], workflow["jobs"]["lowest"]
    assert tests["strategy"]["matrix"]["python"] == named
    assert {"python-version": named[0]} in [step.get("with") for step in lowest["steps"]]
    commands = [step["run"] for job in (tests, lowest) for step in job["steps"] if "run" in step]
    assert commands == ["scripts/test", "scripts/test_lowest"]
    assert workflow["permissions"] == {"contents": "read"}


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]


def ci_run(folder: Path, installs: bool) -> subprocess.CompletedProcess[str]:
    """`.ci/run` as root on a machine without a browser, before tests that only say that they run."""
    programs = {
        ".ci/run": (ROOT / ".ci" / "run").read_text(encoding="utf-8"),
        "scripts/test": "#!/bin/sh\necho the tests run\n",
        "bin/apt-get": f"#!/bin/sh\necho apt-get $1 >&2\nexit {0 if installs else 100}\n",
        "bin/id": "#!/bin/sh\necho 0\n",
    }
    for name, text in programs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    for tool in ("dirname", "env"):
        (folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return subprocess.run(
        [str(shutil.which("bash")), str(folder / ".ci/run")],
        env={"PATH": str(folder / "bin")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("installs", [True, False])
def test_ci_installs_the_browser_and_goes_on_without_it(installs: bool, tmp_path: Path):
    done = ci_run(tmp_path, installs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the tests run"
    assert ("could not be installed" in done.stdout) == (not installs)
    assert done.stderr.splitlines() == ["apt-get update", "apt-get install"][: 1 + installs]


@pytest.mark.parametrize(("installed", "wrong"), [("6.1", ["demo>=6.0: 6.1"]), ("6.0", []), ("6.0.2", [])])
def test_a_bound_that_nobody_can_install_is_told(installed: str, wrong: list[str], tmp_path: Path):
    """`scripts/check_bounds`, over a project with one requirement."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "check_bounds").write_text((ROOT / "scripts" / "check_bounds").read_text(encoding="utf-8"))
    extras = "[project.optional-dependencies]\nreport = []\ntest = []\n"
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\ndependencies = ["demo>=6.0"]\n{extras}')
    (tmp_path / "demo.dist-info").mkdir()
    (tmp_path / "demo.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: demo\nVersion: {installed}\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "scripts" / "check_bounds")],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line.partition(" is ")[0] for line in done.stdout.splitlines()] == wrong, done.stderr
    assert done.returncode == bool(wrong)
