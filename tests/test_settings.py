"""No setting is ignored: every field of an experiment is read by the run, and changes it, or is refused or told."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_own_task
from safetensors.torch import load_file
from settings_reads import reads
from typer.testing import CliRunner

from trainers import cli, config, experiment, lora, weak
from trainers import harness as hn
from trainers.labels import gold_labels
from trainers.method_args import MethodArgs
from trainers.progress import Progress
from trainers.schema import Section
from trainers.unused import unused
from w2s_tasks.errors import UserError

# ---- every field is read ------------------------------------------------------------------------------------------------

METHODS = (
    *("xent", "relabel+logconf", "filter+product", "ensemble+entropy", "bootstrap+window", "adaptive_confidence"),
)
BY_CLASSIFIER = (
    "arms=[zero_shot, few_shot, few_shot(1), student, ceiling, self_labels, unsupervised, random_labels]",
    f"methods={json.dumps(METHODS)}",
    "unsupervised={rows: 8, groups: 2, initial: 2, steps: 4}",
    "safety={tasks: [w2s_ethics_probe_justice], limit: 4, limits: {w2s_ethics_probe_justice: 6}, num_fewshot: [0, 1]}",
    "evaluate={limit: 12, few_shot_k: 2, checkpoints: [0.5], task: own_reviews, tuned_task: own_reviews}",
)
BY_LORA = (
    "arms=[zero_shot, student]",
    "strong.chat_template=true",
    "strong.system_prompt=Be brief.",
    "strong.objective=language_model",
    "evaluate.limit=8",
)
ELSEWHERE = {
    ("Experiment", "include_path"): "made absolute when the file is read",
    ("Experiment", "name"): "names the run folder when it is opened",
    ("Split", "weak"): "",
}


def sections(model: type[Section]) -> set[type[Section]]:
    """A section and those inside it."""
    return {model}.union(*(sections(type(f.default)) for f in model.model_fields.values() if isinstance(f.default, Section)))


def run(experiment_file: Path, runs: Path, *sets: str) -> None:
    flow = experiment.open_flow(config.load(str(experiment_file), list(sets))[0], runs)
    flow.run(Progress(quiet=True))


def test_every_field_is_read_by_a_run(experiment_file: Path, causal_model: Callable[[str], Path], tmp_path: Path):
    by_lora = f"weak={{trainer: lora, model: {causal_model('llama')}, r: 2, lr: 0.01, batch_size: 16}}"
    with reads() as found:
        run(experiment_file, tmp_path / "classifier", *BY_CLASSIFIER)
        run(experiment_file, tmp_path / "lora", by_lora, *BY_LORA)
    known = sections(config.Experiment) | {config.Strong, config.Safety}
    every = {(s.__name__, f) for s in known - {config.Weak} for f in s.model_fields}
    every |= {(f"Weak.{t}", f) for t in ("classifier", "lora") for f in config.Weak.model_fields}
    every -= {("Weak.lora", f) for f in config.OF_CLASSIFIER} | {("Weak.classifier", f) for f in config.OF_LORA}
    assert sorted(every - found) == []
