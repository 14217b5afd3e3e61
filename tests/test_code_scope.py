"""What code a key stands on: all that a function reaches and nothing else, in a small package and in this suite itself."""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainers.config.reading import load
from trainers.flow.run import open_run
from trainers.registry import Registry
from w2s_tasks import code_scope

ROOT = Path(__file__).parents[1]
PACKAGE = {
    "__init__": "",
    "main": '''
"""Words about the module."""
from __future__ import annotations
from typing import TYPE_CHECKING
import scoped.tools as tools
from scoped import names as other
from scoped.registries import ENTRIES
from scoped.types import Given as Renamed
from .near import nearby
if TYPE_CHECKING:
    from scoped.typing_only import Hint
LIMIT = 3
def root(given: Renamed, hint: Hint) -> int:
    """Words about it."""
    from scoped import late
    # a comment
    return tools.used() + other.CONSTANT + LIMIT + late.called() + nearby() + ENTRIES["first"]()
def unused() -> int:
    return 1
class Job:
    def build(self) -> int:
        return self.part() + unused()
    def part(self) -> int:
        return LIMIT
    def apart(self) -> int:
        return tools.used()
''',
    "tools": "def used(): return helper()\ndef helper(): return 1\ndef idle(): return 2\nprint_nothing = None\n",
    "names": "CONSTANT = 1\nOTHER = 2\n",
    "near": "def nearby(): return 1\ndef marked(f): return f\nnearby = marked(nearby)\n",
    "late": "import scoped.effects\ndef called(): return scoped.effects.value()\n",
    "effects": "def value(): return 1\ndef at_import(): return 2\nat_import()\n",
    "types": "class Given:\n    def method(self): return base()\ndef base(): return 1\n",
    "typing_only": "class Hint: pass\n",
    "registries": (
        "class Registry(dict):\n    def entry(self, f):\n        self[f.__name__] = f\n        return f\n"
        "ENTRIES: Registry = Registry()\n@ENTRIES.entry\ndef first(): return 1\n@ENTRIES.entry\ndef second(): return 2\n"
    ),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the small package, which can be imported and searched."""
    folder = tmp_path / "scoped"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(code_scope, "PACKAGES", ("scoped",))
    code_scope.forget()
    yield folder
    code_scope.forget()
    for name in [name for name in sys.modules if name.partition(".")[0] == "scoped"]:
        del sys.modules[name]


def function(name: str, module: str = "main") -> Any:
    found: Any = importlib.import_module(f"scoped.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return found


CHANGES: dict[str, tuple[str, str, str]] = {
    "its own code": ("main", "return tools.used() + other", "return 0 + tools.used() + other"),
    "a constant": ("main", "LIMIT = 3", "LIMIT = 4"),
    "a module's attribute": ("tools", "return helper()", "return 0 + helper()"),
    "what that calls": ("tools", "def helper(): return 1", "def helper(): return 7"),
    "an imported constant": ("names", "CONSTANT = 1", "CONSTANT = 9"),
    "an import in the function": ("late", "def called(): return", "def called(): return 0 +"),
    "an import by the whole path": ("effects", "def value(): return 1", "def value(): return 9"),
    "what a module does when it is imported": ("effects", "\nat_import()\n", "\nat_import(), at_import()\n"),
    "what that calls when it is imported": ("effects", "def at_import(): return 2", "def at_import(): return 9"),
    "a type under another name": ("types", "return base()", "return 0 + base()"),
    "what a type's method calls": ("types", "def base(): return 1", "def base(): return 9"),
    "a relative import": ("near", "def nearby(): return 1", "def nearby(): return 9"),
    "a name that is bound again": ("near", "nearby = marked(nearby)", "nearby = marked(marked(nearby))"),
}
NO_CHANGES: dict[str, tuple[str, str, str]] = {
    "a comment": ("main", "# a comment", "# another\n\n"),
    "a docstring": ("main", '"""Words about it."""', '"""Other words."""'),
    "a module's docstring": ("main", '"""Words about the module."""', ""),
    "how it is laid out": ("main", "LIMIT = 3", "LIMIT    =   3"),
    "another function": ("main", "def unused() -> int:\n    return 1", "def unused() -> int:\n    return 9"),
    "a function beside the one that is used": ("tools", "def idle(): return 2", "def idle(): return 9"),
    "another constant": ("names", "OTHER = 2", "OTHER = 9"),
    "what only a type checker imports": ("typing_only", "class Hint: pass", "class Hint: x = 1"),
    "an entry of a registry": ("registries", "def second(): return 2", "def second(): return 9"),
    "the entry that is looked up": ("registries", "def first(): return 1", "def first(): return 9"),
    "one more entry": ("registries", "\ndef second", "\ndef third(): return 3\n@ENTRIES.entry\ndef second"),
}


def after(package: Path, change: tuple[str, str, str], roots: list[Any]) -> tuple[str, str]:
    """The hash of some roots before and after a change of a file."""
    module, old, new = change
    before, path = code_scope.code_hash(roots), package / f"{module}.py"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    code_scope.forget()
    return before, code_scope.code_hash(roots)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_a_function_reaches_counts(package: Path, change: tuple[str, str, str]):
    before, now = after(package, change, [function("root")])
    assert before != now


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES.keys())
def test_what_it_does_not_reach_does_not_count(package: Path, change: tuple[str, str, str]):
    before, now = after(package, change, [function("root")])
    assert before == now


def test_an_entry_of_a_registry_counts_where_it_is_named(package: Path):
    roots = [function("root"), function("first", "registries")]
    before, now = after(package, NO_CHANGES["the entry that is looked up"], roots)
    assert before != now
    before, now = after(package, NO_CHANGES["one more entry"], roots)
    assert before == now


def test_of_a_method_counts_what_it_reaches_through_self(package: Path):
    build = function("Job")().build
    assert code_scope.reached([build])["scoped.main"] >= {"Job.build", "Job.part", "unused", "LIMIT"}
    assert "Job.apart" not in code_scope.reached([build])["scoped.main"]
    assert "scoped.tools" not in code_scope.reached([functools.partial(build)])
    assert code_scope.code_hash([build]) == code_scope.code_hash([functools.partial(build)])
    before, now = after(package, CHANGES["a constant"], [build])
    assert before != now


def test_of_a_class_all_counts_and_what_is_not_ours_stands_on_nothing(package: Path):
    assert "scoped.tools" in code_scope.reached([function("Job")])
    assert code_scope.reached([json.dumps, len]) == {}
    assert not code_scope.is_ours(json.dumps)
    assert code_scope.is_ours(function("root"))


def test_a_registry_has_entries_under_their_names():
    found: Registry[Callable[[], int]] = Registry("function")

    @found.entry
    def first() -> int:
        return 1

    @found.named("other")
    def second() -> int:
        return 2

    assert {name: entry() for name, entry in found.items()} == {"first": 1, "other": 2}
    assert (first(), second()) == (1, 2)


# ---- this suite -----------------------------------------------------------------------------------------------------

Keys = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def keys_after(
    encoder_folder: Path, causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Keys]:
    """The keys of an experiment's steps, were this suite's source a copy in which one file reads otherwise."""
    from conftest import write_experiment

    folder = tmp_path_factory.mktemp("experiment")
    config = write_experiment(folder, encoder_folder, causal_model("llama"))
    sets = ["methods=[xent, logconf]", "arms=[zero_shot, student, ceiling, random_labels, noise_matched]"]
    flow = open_run(load(str(config), sets)[0], folder / "runs")
    for package in code_scope.PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.jsonl"))

    def keys(name: str = "", old: str = "", new: str = "") -> dict[str, str]:
        text = (folder / name).read_text(encoding="utf-8") if name else ""
        assert text.count(old) == 1 or not name, (name, old)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(code_scope, "folder_of", lambda package: folder / package)
            if name:
                (folder / name).write_text(text.replace(old, new), encoding="utf-8")
            code_scope.forget()
            flow._keys.clear()
            found = {name: flow.key(step) for name, step in flow.layout.steps.items()}
        if name:
            (folder / name).write_text(text, encoding="utf-8")
        return found

    yield keys
    code_scope.forget()


@pytest.fixture(scope="module")
def keys_before(keys_after: Keys) -> dict[str, str]:
    return keys_after()


NEW_LOSS = '''
@loss
def half(logprobs: Tensor, targets: Tensor, state: State) -> Tensor:
    """Half of the cross-entropy."""
    return _cross_entropy(logprobs, targets) / 2


@loss
@whole_step
def logconf('''
WEAK, STUDENT_LOGCONF, NOISE_MATCHED = (f"fit/{arm}, seed 0" for arm in ("weak", "student, logconf", "noise_matched"))
TRAINED = {STUDENT_LOGCONF, NOISE_MATCHED, *(f"fit/{arm}, seed 0" for arm in ("student", "ceiling", "random_labels"))}


def evaluations(fits: set[str]) -> set[str]:
    return {fit.replace("fit/", "evaluate/") for fit in fits}


FUTURE = "from __future__ import annotations\n"
EDITS: dict[str, tuple[str, str, str, set[str]]] = {
    "a new loss": (
        "trainers/training/losses.py",
        "@loss\n@whole_step\ndef logconf(",
        NEW_LOSS.lstrip(),
        set(),
    ),
    "a comment in the chat client": ("w2s_tasks/models/chat/transport.py", FUTURE, f"{FUTURE}# words\n", set()),
    "code of the report's page": ("trainers/report/page.py", FUTURE, f"{FUTURE}\nNEW = 1\n", set()),
    "a function beside those that split": (
        "trainers/labels/splits.py",
        "def limited(",
        "def beside(): pass\n\n\ndef limited(",
        set(),
    ),
    "another loss": (
        "trainers/training/losses.py",
        "threshold = prior_threshold(batch, prior) if",
        "threshold = -prior_threshold(batch, prior) if",
        {STUDENT_LOGCONF, *evaluations({STUDENT_LOGCONF})},
    ),
    "a label operation": (
        "trainers/labels/arms.py",
        "soft[rows] = labels.soft[rng.permutation(rows)]",
        "soft[rows] = labels.soft[rng.permutation(rows)[::-1]]",
        {NOISE_MATCHED, *evaluations({NOISE_MATCHED})},
    ),
    "the LoRA trainer": (
        "trainers/fit/lora.py",
        "set_seed(seed)\n    model = with_adapter",
        "set_seed(seed + 1)\n    model = with_adapter",
        {*TRAINED, *evaluations(TRAINED)},
    ),
    # The weak labels are a classifier's, which packs nothing; all that the strong model does is packed.
    "packing": (
        "w2s_tasks/packing/plan.py",
        "MIN_SAVING = 0.2",
        "MIN_SAVING = 0.3",
        {*TRAINED, *evaluations(TRAINED), "evaluate/zero_shot"},
    ),
    # Every fit learns by it, or stands on labels of one that did.
    "cross-entropy": (
        "trainers/training/losses.py",
        "    return _cross_entropy(logprobs, targets)\n",
        "    return 2 * _cross_entropy(logprobs, targets)\n",
        {WEAK, "labels/weak, seed 0", *TRAINED, *evaluations({WEAK, *TRAINED})},
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_change_of_the_source_changes_the_keys_of_what_stands_on_it(
    what: str, keys_before: dict[str, str], keys_after: Keys
):
    name, old, new, expected = EDITS[what]
    now = keys_after(name, old, new)
    assert now.keys() == keys_before.keys()
    assert {step for step in now if now[step] != keys_before[step]} == expected


def test_a_report_stands_on_every_file(package: Path):
    seen = [code_scope.all_code.__wrapped__()]
    for name in ("typing_only", "tools"):
        path = package / f"{name}.py"
        path.write_text(path.read_text() + "# words\n")
        seen.append(code_scope.all_code.__wrapped__())
    assert len({*seen}) == 3
    assert all(len(code) == 16 for code in seen)


@pytest.mark.parametrize(("weak", "packed"), [("classifier", False), ("lora", True)])
def test_weak_labels_stand_on_packing_where_the_supervisor_is_packed(
    experiment_file: Path, causal_model: Callable[[str], Path], weak: str, packed: bool
):
    sets = [f"weak={{trainer: lora, model: {causal_model('llama')}}}"] if weak == "lora" else []
    flow = open_run(load(str(experiment_file), sets)[0], experiment_file.parent / "runs")
    for name in ("labels/weak, seed 0", "evaluate/weak, seed 0", "fit/weak, seed 0"):
        step = flow.layout.steps[name]
        assert ("w2s_tasks.packing.plan" in code_scope.reached([step.build, *step.code])) is packed, name
