"""The law: w2s-hf answers every task of the pack as lm_eval's own hf does, on every architecture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tasks_here import is_here

from trainers.harness.evaluate import Harness, PromptStyle
from w2s_tasks import TASK_PATH
from w2s_tasks.models.packed_hf import W2SHF

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral")]
ARCHITECTURES = ["llama", *SLOW]
ON_FILE = "w2s_ethics_probe"
"""The tasks whose rows ship with the package."""


def names() -> list[str]:
    """Every task of the pack whose data is here; movie reviews come from the package index, in tests marked for it."""
    everything: list[str] = TaskManager(include_path=str(TASK_PATH), include_defaults=False).all_subtasks
    here = everything if os.environ.get("W2S_DATA") else [name for name in everything if name.startswith(ON_FILE)]
    return [name for name in here if not name.startswith("w2s_movie_reviews") and is_here(name)]


def render(tasks: list[str], docs: int, shots: list[int]) -> dict[str, list[Any]]:
    """Requests for each kind of output, of the first documents of every task with every number of shots."""
    requests: dict[str, list[Any]] = {"multiple_choice": [], "generate_until": []}
    for task in Harness().load(tasks):
        for number in shots:
            for i in range(docs):
                requests[task.task.OUTPUT_TYPE] += task.requests([task.task.eval_docs[i]], PromptStyle(number))
    return requests


@pytest.fixture(scope="module")
def everything() -> dict[str, list[Any]]:
    found = render(names(), docs=2, shots=[0, 4])
    for request in found["generate_until"]:  # some ask for more than the small models' windows hold
        context, settings = request.arguments
        request.arguments = context, {**settings, "max_gen_toks": min(32, settings["max_gen_toks"])}
    assert len(found["multiple_choice"]) > 2 * 2 * 2 * 12
    assert len(found["generate_until"]) >= 2 * 2 * 12
    return found


def part_of(requests: list[Any], architecture: str) -> list[Any]:
    """Every task's for the first architecture, every fifth's for the others: they differ in masks, not in prompts."""
    names = sorted({request.task_name for request in requests})
    chosen = set(names if architecture == ARCHITECTURES[0] else names[::5])
    return [request for request in requests if request.task_name in chosen]


def assert_equal(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4)
    assert [a[1] for a in ours] == [a[1] for a in theirs]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_task_is_answered_as_by_lm_evals_hf(
    everything: dict[str, list[Any]], causal_model: Callable[[str], Path], architecture: str
):
    """Prompts longer than the window of 256 tokens among them, which are truncated from the left."""
    folder = str(causal_model(architecture))
    ours, theirs = W2SHF(folder, device="cpu"), HFLM(folder, device="cpu", dtype="float32", batch_size=8)
    asked = part_of(everything["multiple_choice"], architecture)
    assert_equal(ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True))
    asked = part_of(everything["generate_until"], architecture)
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)


@pytest.mark.slow
@pytest.mark.pypi
def test_every_task_is_answered_as_by_lm_evals_hf_on_smollm2(smollm2: str):
    asked = render([*names(), "w2s_movie_reviews"], docs=2, shots=[0, 2])["multiple_choice"]
    ours, theirs = W2SHF(smollm2, device="cpu"), HFLM(smollm2, device="cpu", dtype="float32", batch_size=1)
    assert_equal(ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True))
