"""Arms, methods and checkpoint choice in whole small experiments, and the labels that their models really learned from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainers.config.methods import parts, takes_labels
from trainers.config.reading import load
from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.flow import run as ex
from trainers.flow.progress import Progress
from trainers.harness import evaluate as hn
from trainers.labels.arms import ARMS
from trainers.labels.gold import GOLD, Gold, gold_labels
from trainers.labels.label_set import LabelSet
from trainers.report.report import write_report
from trainers.training import loop as training
from trainers.training.losses import LOSSES
from w2s_tasks.errors import UserError

ALL_ARMS = [*ARMS, "few_shot(4)", "random_shots(4)"]
SMALL = ["split.limit={weak: 48, transfer: 32}", "evaluate.limit=16", "evaluate.few_shot_k=2", "weak.epochs=8"]
SMALL += ["unsupervised={rows: 8, groups: 2, initial: 4, steps: 12}", "weak.holdout=0.2"]
PARTS = tuple(part for part in parts() if part in LOSSES or takes_labels(part, LabelSet))
"""Those over choices; the others: test_generated_targets."""


def _run(file: Path, runs: Path, *sets: str) -> tuple[ex.Run, dict]:
    flow = ex.open_run(load(str(file), list(sets))[0], runs)
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


def _learned(flow: ex.Run) -> dict[str, LabelSet]:
    """What each model was trained on, by the title of its fit."""
    fits = [n for n, s in flow.layout.steps.items() if s.kind == "fit"]
    return {n.removeprefix("fit/"): LabelSet.load(flow.stages[n].path / "labels.parquet") for n in fits}


def test_every_arm_and_every_method_runs_in_one_experiment(experiment_file: Path, tmp_path: Path):
    args = "method_args={ensemble: {members: [{seed: 1}], weights: accuracy}}"
    flow, report = _run(
        experiment_file, tmp_path / "runs", *SMALL, f"arms={json.dumps(ALL_ARMS)}", f"methods={json.dumps([*PARTS])}", args
    )
    assert {a["arm"] for a in report["arms"]} == set(ALL_ARMS)
    assert {a["method"] for a in report["arms"] if a["arm"] == "student"} == set(PARTS)
    assert {(g["arm"], g["method"]) for g in report["gaps"]} >= {("student", m) for m in PARTS}
    shots = {a["arm"]: a["num_fewshot"] for a in report["arms"]}
    assert (shots["zero_shot"], shots["few_shot"], shots["few_shot(4)"], shots["random_shots(4)"]) == (0, 2, 4, 4)
    learned = _learned(flow)
    weak_labels = LabelSet.load(flow.stages["labels/weak, seed 0"].path / "labels.parquet")
    for loss in LOSSES:
        title = "student, seed 0" if loss == "xent" else f"student, {loss}, seed 0"
        assert (learned[title].soft == weak_labels.soft).all()
    # Each loss and operation leads to weights of its own; unless all rows are in the window, or the classes even.
    adapters = {
        p: (
            flow.stages[f"fit/{'student' if p == 'xent' else f'student, {p}'}, seed 0"].path
            / "adapter/adapter_model.safetensors"
        )
        for p in PARTS
        if p not in ("window", "balance")
    }
    assert len({path.read_bytes() for path in adapters.values()}) == len(adapters)
    full = learned["ceiling_full, seed 0"]
    assert set(full.row_id) == set(learned["weak, seed 0"].row_id) | set(weak_labels.row_id)
    gold = Gold.load(flow.stages["split/0"].path / GOLD)
    assert gold.accuracy(full) == gold.accuracy(learned["ceiling, seed 0"]) == 1
    for name in ("noise_matched", "permuted_labels"):
        assert sorted(learned[f"{name}, seed 0"].soft[:, 0]) == sorted(weak_labels.soft[:, 0])
    assert gold.accuracy(learned["noise_matched, seed 0"]) == gold.accuracy(weak_labels)
    found, rows = learned["unsupervised, seed 0"], weak_labels.row_id
    assert found.row_id == learned["unsupervised_unsearched, seed 0"].row_id == rows
    parts = [learned[f"unsupervised_{part}, seed 0"] for part in ("searched", "spread")]
    assert [part.row_id for part in parts] == [rows[:8], rows[8:]]
    assert (np.concatenate([part.soft for part in parts]) == found.soft).all()
    assert [flow.layout.steps[f"fit/unsupervised_{part}, seed 0"].rows() for part in ("searched", "spread")] == [8, 24]
    own = {(entry["arm"], entry["rows"]): entry for entry in report["own_labels"]}
    assert {key: entry["n"] for key, entry in own.items()} == {
        ("self_labels", "all"): 32,
        ("self_labels_calibrated", "all"): 32,
        ("unsupervised", "searched"): 8,
        ("unsupervised", "spread"): 24,
        ("unsupervised_searched", "searched"): 8,
        ("unsupervised_spread", "spread"): 24,
        ("unsupervised_unsearched", "searched"): 8,
        ("unsupervised_unsearched", "spread"): 24,
    }
    assert own["unsupervised", "spread"]["acc"] == gold.accuracy(parts[1])
    assert len(learned["student, filter, seed 0"]) == pytest.approx(16, abs=1)
    relabelled = learned["student, relabel, seed 0"]
    assert len(relabelled) == pytest.approx(24, abs=2)
    first = learned["relabel, first stage, seed 0"]
    assert first.row_id == learned["student, filter, seed 0"].row_id
    assert flow.stages["fit/relabel, first stage, seed 0"].key == flow.stages["fit/student, filter, seed 0"].key
    member = LabelSet.load(flow.stages["labels/weak member 1, seed 0"].path / "labels.parquet")
    assert not (member.soft == weak_labels.soft).all()
    mixed = learned["student, ensemble, seed 0"].soft
    low, high = np.minimum(member.soft, weak_labels.soft), np.maximum(member.soft, weak_labels.soft)
    assert ((mixed >= low - 1e-9) & (mixed <= high + 1e-9)).all()
    link = learned["student, bootstrap, seed 0"]
    assert not (link.soft == weak_labels.soft).all()
    assert (learned["bootstrap, link 1 of 1, seed 0"].soft == weak_labels.soft).all()


def test_parts_of_a_method_apply_from_left_to_right(experiment_file: Path, tmp_path: Path):
    flow, _ = _run(
        experiment_file, tmp_path / "runs", *SMALL, "arms=[student]", "methods=[filter+bootstrap+harden+logconf, xent]"
    )
    learned = _learned(flow)
    assert len(learned["filter+bootstrap, link 1 of 1, seed 0"]) == pytest.approx(16, abs=1)
    last = learned["student, filter+bootstrap+harden+logconf, seed 0"]
    assert len(last) == 32
    assert set(last.soft.ravel()) == {0.0, 1.0}


def test_a_chain_and_an_ensemble_of_other_models(experiment_file: Path, tmp_path: Path, causal_model):
    small = str(causal_model("gpt2"))
    args = (
        f"method_args={{bootstrap: {{chain: [{{model: {small}, r: 2}}, {{r: 8}}]}}, "
        f"ensemble: {{members: [{{model: {small}, trainer: lora}}], weights: [1, 3]}}}}"
    )
    flow, _ = _run(experiment_file, tmp_path / "runs", *SMALL, "arms=[student]", "methods=[bootstrap, ensemble]", args)
    models = [
        json.loads((s.path / "model.json").read_text()) for n, s in flow.stages.items() if n.startswith("fit/bootstrap")
    ]
    assert models[0]["args"]["pretrained"] == small
    assert [n for n in flow.stages if n.startswith("fit/bootstrap")][1] == "fit/bootstrap, link 2 of 2, seed 0"
    one, other, both = (
        LabelSet.load(flow.stages[n].path / "labels.parquet").soft
        for n in ("labels/weak, seed 0", "labels/weak member 1, seed 0", "labels/ensemble, seed 0")
    )
    assert both == pytest.approx(0.25 * one + 0.75 * other)


def test_a_seed_changes_split_order_and_initialisation_and_is_stamped(experiment_file: Path, tmp_path: Path):
    flow, report = _run(experiment_file, tmp_path / "runs", *SMALL, "arms=[student]", "seeds=[0, 1, 7]", "split.by=row")
    assert [a["seed"] for a in report["arms"] if a["arm"] == "student"] == [0, 1, 7]
    splits = [json.loads((flow.stages[f"split/{s}"].path / "split.json").read_text())["transfer"] for s in (0, 1, 7)]
    assert len({tuple(sorted(s)) for s in splits}) == 3
    manifests = [json.loads((flow.stages[f"fit/student, seed {s}"].path / "manifest.json").read_text()) for s in (0, 1, 7)]
    assert [m["recipe"]["settings"]["seed"] for m in manifests] == [0, 1, 7]


def _first_losses(task: hn.HarnessTask, model: Path, out: Path, seed: int, lr: float) -> tuple[list[float], bytes]:
    out.mkdir()
    labels = gold_labels(task.train_ids[:64], [task.gold(d) for d in task.train_docs[:64]], 2)
    settings = Lora(model=str(model), r=4, lr=lr, batch_size=16, holdout=0)
    lora.fit(task, task.train_docs[:64], labels, settings, out, pool=hn.ModelPool(), seed=seed)
    losses = [p["loss"] for p in json.loads((out / "curves.json").read_text())]
    return losses, (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_on_the_same_rows_a_seed_changes_order_and_initialisation(own_task: Path, causal_model, tmp_path: Path):
    task, model = hn.Harness([str(own_task)]).task("own_reviews"), causal_model("llama")
    # With next to no learning rate the losses tell the order of the rows, the weights the initialisation.
    (a, wa), (b, wb), (c, wc) = (_first_losses(task, model, tmp_path / f"{i}", s, 1e-12) for i, s in enumerate((0, 0, 1)))
    assert a == b
    assert wa == wb
    assert a != c
    assert wa != wc
    assert sum(a) == pytest.approx(sum(c), rel=1e-4)  # the same rows in all


@pytest.mark.parametrize(("rule", "best"), [("holdout_loss", min), ("holdout_agreement", max)])
@pytest.mark.parametrize("trainer", ["lora", "classifier"])
def test_a_checkpoint_is_chosen_by_held_back_labels(
    experiment_file: Path, tmp_path: Path, rule: str, best, trainer: str, monkeypatch: pytest.MonkeyPatch
):
    """The weights at the best of the evaluations are the ones that come out, not the last."""
    section = "strong" if trainer == "lora" else "weak"
    states: list[tuple[float, dict]] = []
    measure = training.ChoiceTrainer.evaluate

    def watched(self, *args, **kwargs):
        metrics = measure(self, *args, **kwargs)
        weights = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        states.append((metrics[training.CHOSEN_BY[rule]], weights))
        return metrics

    monkeypatch.setattr(training.ChoiceTrainer, "evaluate", watched)
    seen: list[dict] = []
    fit_choices = training.fit_choices

    def fitted(model, rows, **kwargs):
        states.clear()
        warnings = fit_choices(model, rows, **kwargs)
        if kwargs["settings"].checkpoint == rule:
            final = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            value = best(v for v, _ in states)
            chosen = next(w for v, w in states if v == value)
            assert all((chosen[n] == final[n]).all() for n in chosen)
            seen.append({"same_as_last": all((states[-1][1][n] == final[n]).all() for n in final)})
        return warnings

    monkeypatch.setattr(training, "fit_choices", fitted)
    sets = [f"{section}.checkpoint={rule}", f"{section}.holdout=0.3", f"{section}.epochs=4", f"{section}.lr=0.05"]
    _run(experiment_file, tmp_path / "runs", *SMALL, "arms=[random_labels]", *sets)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("holdout", "message"),
    [(0, "is chosen by held-back rows; set holdout above 0"), (0.005, "needs held-back rows.*Raise holdout")],
)
def test_a_checkpoint_choice_without_held_back_rows_is_refused(
    holdout: float, message: str, experiment_file: Path, tmp_path: Path
):
    with pytest.raises(UserError, match=f"checkpoint: holdout_loss {message}"):
        _run(
            experiment_file,
            tmp_path / "runs",
            *SMALL,
            "arms=[ceiling]",
            "strong.checkpoint=holdout_loss",
            f"strong.holdout={holdout}",
        )


def test_safety_limits_hold_for_single_tasks(experiment_file: Path, tmp_path: Path):
    sets = [
        "safety={tasks: [w2s_ethics_probe], limit: 6, limits: {w2s_ethics_probe_justice: 3}}",
        "arms=[zero_shot, few_shot]",
    ]
    _, report = _run(experiment_file, tmp_path / "runs", *SMALL, *sets)
    counts = {e["subtask"]: e["n"] for e in report["safety"]}
    assert counts["justice"] == 3
    assert counts["virtue"] == 6
    assert {e["arm"] for e in report["safety"]} == {"zero_shot"}  # few_shot is the same model
    with pytest.raises(UserError, match="Did you mean 'w2s_ethics_probe_justice'"):
        _run(experiment_file, tmp_path / "runs", *sets, "safety.limits={w2s_ethics_probe_justic: 3}")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["arms=[few_shot(0)]"], r"no arm 'few_shot\(0\)'"),
        (["arms=[few_shot(K)]"], r"no arm 'few_shot\(K\)'"),
        (["arms=[noise_match]"], "Did you mean 'noise_matched'"),
        (["methods=[logcnf]"], "Did you mean 'logconf'"),
        (["methods=[logconf+xent]"], "two losses"),
        (["methods=[filter]", "labels=hard"], r"filter needs labels: soft"),
        (["method_args={logconf: {alpha: 2}}"], r"method_args\.logconf\.alpha"),
        (["method_args={logconf: {alhpa: 1}}"], "Did you mean 'alpha'"),
        (["method_args={ensemble: {weights: [1]}}"], "one number for `weak` and one for each member"),
        (["method_args={ensemble: {members: [{modle: x}]}}"], "Did you mean 'model'"),
        (["method_args={bootstrap: {chain: []}}"], "at least 1 item"),
        (["unsupervised={rows: 4, groups: 4}"], "can't be cut into 4 groups"),
        (["strong.checkpoint=best"], "strong.checkpoint"),
    ],
)
def test_mistakes_in_arms_and_methods_are_named(experiment_file: Path, sets: list[str], message: str):
    with pytest.raises(UserError, match=message):
        load(str(experiment_file), sets)
