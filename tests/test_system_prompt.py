"""Where a system prompt stood is told of every training and evaluation, and so is that models were not prompted alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_own_labels import IGNORES, REFUSES
from transformers import AutoTokenizer

from trainers.cli import main
from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.report.report import read_report, show_report, write_report
from trainers.training.told import FILE
from w2s_tasks.scoring.system_place import FOLDED, MESSAGE, PLAIN


def _speaking(model: Path, folder: Path, start: str) -> Path:
    """A copy of a model whose chat template begins so."""
    shutil.copytree(model, folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = start + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def described(own_task: Path) -> Path:
    """The task with a description."""
    yaml = own_task / "own_reviews.yaml"
    yaml.write_text(yaml.read_text() + 'description: "Judge film reviews.\\n\\n"\n')
    return own_task


def _run(experiment_file: Path, runs: Path, *sets: str) -> tuple[Run, dict[str, Any], str]:
    """The flow, its report, and all its cards as one text."""
    flow = open_run(load(str(experiment_file), [*sets, "split.limit.weak=32", "split.limit.transfer=32"])[0], runs)
    flow.build(Progress(quiet=True))
    report = write_report(flow)[0].json()
    return flow, report, "\n".join(p.read_text() for p in sorted((flow.folder / "model_cards").glob("*.md")))


@pytest.mark.parametrize("start", [REFUSES, IGNORES, ""])
@pytest.mark.parametrize("what", ["a system prompt", "a description"])
def test_every_arm_is_stamped_with_the_place_of_its_system_prompt(
    what: str, start: str, experiment_file: Path, request: pytest.FixtureRequest, causal_model: Any, tmp_path: Path
):
    if what == "a description":
        request.getfixturevalue("described")
    strong = _speaking(causal_model("llama"), tmp_path / "strong", start)
    sets = [f"strong.model={strong}", "strong.chat_template=true", "arms=[zero_shot, student, ceiling]"]
    sets += ["strong.system_prompt=Judge film reviews."] if what == "a system prompt" else []
    flow, report, cards = _run(experiment_file, tmp_path / "runs", *sets)
    place = FOLDED if start else MESSAGE
    for arm in report["arms"][1:]:
        assert arm["system_prompt"] == place, arm
        assert arm["arm"] == "zero_shot" or arm["training"]["system_prompt"] == place
    (entry,) = report["system_prompts"]
    assert entry == {
        "task": "own_reviews",
        "place": place,
        "models": ["zero_shot", "student", "ceiling", "training of student", "training of ceiling"],
    }
    assert report["notes"] == []
    assert cards.count(f"| system prompt and description | {place} |") == 2
    assert place in (flow.folder / "report.html").read_text()


def test_a_plain_prompt_begins_with_the_description_and_without_one_nothing_is_told(
    described: Path, experiment_file: Path, tmp_path: Path
):
    _, report, _ = _run(experiment_file, tmp_path / "runs", "arms=[student]", "weak.text=null")
    assert [arm["system_prompt"] for arm in report["arms"]] == [PLAIN, PLAIN]
    assert [arm["training"]["system_prompt"] for arm in report["arms"]] == [PLAIN, PLAIN]
    yaml = described / "own_reviews.yaml"
    yaml.write_text(yaml.read_text().partition("description")[0])
    _, report, cards = _run(experiment_file, tmp_path / "runs", "arms=[student]", "strong.chat_template=true")
    assert report["system_prompts"] == report["notes"] == []
    assert "system prompt" not in cards


def test_models_that_were_not_prompted_alike_are_told(
    experiment_file: Path, causal_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The model between weak and strong has a system role, the strong one has none."""
    strong = _speaking(causal_model("llama"), tmp_path / "strong", REFUSES)
    sets = [f"strong.model={strong}", "strong.chat_template=true", "strong.system_prompt=Judge film reviews."]
    sets += ["arms=[zero_shot, student]", "methods=[bootstrap]"]
    sets += [f"method_args={{bootstrap: {{chain: [{{model: {causal_model('gpt2')}}}]}}}}"]
    flow, report, _ = _run(experiment_file, tmp_path / "runs", *sets)
    (note,) = report["notes"]
    assert note.startswith("Not all models were prompted alike on own_reviews.")
    assert f"{FOLDED} of zero_shot, student, bootstrap, training of student, bootstrap" in note
    assert f"{MESSAGE} of training of bootstrap, link 1 of 1" in note
    assert note.replace("&", "&amp;") in (flow.folder / "report.html").read_text()
    show_report(read_report(flow.folder))
    assert "Not all models were prompted alike" in capsys.readouterr().out


def test_a_supervisor_that_is_asked_without_the_system_prompt_is_told(
    experiment_file: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    weak = f"{{model: {causal_model('gpt2')}, trainer: lora, r: 4, lr: 1e-2, batch_size: 16, chat_template: true}}"
    sets = [f"weak={weak}", "strong.chat_template=true", "strong.system_prompt=Be brief.", "arms=[student]"]
    _, report, _ = _run(experiment_file, tmp_path / "runs", *sets)
    assert report["arms"][0]["system_prompt"] is None
    (note,) = report["notes"]
    assert f"left out of weak, training of weak; {MESSAGE} of student, training of student" in note


def test_a_model_that_is_trained_alone_is_stamped(
    own_task: Path, causal_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    strong = _speaking(causal_model("llama"), tmp_path / "strong", IGNORES)
    arguments = ["--task", "own_reviews", "--include_path", str(own_task), "--model", str(strong), "--limit", "16"]
    arguments += ["--set", "chat_template=true", "--set", "system_prompt=Be brief.", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["w2s", "finetune", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert json.loads((tmp_path / "out" / FILE).read_text())["system_prompt"] == FOLDED
    assert json.loads((tmp_path / "out" / "training.json").read_text())["system_prompt"] == FOLDED
