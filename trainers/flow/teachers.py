"""The stages between the weak labels and a student: ensembles, chains, relabelling (see `trainers.config.methods`).

Each adds steps to a flow and returns the `Source` that the next one, or the student, learns from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainers.config.methods import Method
from trainers.fit.trainer import answering_code
from trainers.flow.steps import Code, Source
from trainers.labels import relabel
from trainers.labels.label_set import LabelSet

if TYPE_CHECKING:
    from trainers.flow.experiment import Flow


def lay_out(flow: Flow, method: Method, split: str, seed: int, weak_fit: str, labels: str) -> Source:
    """Add the steps of a method's operations, from left to right.

    Args:
        flow: to add to.
        method: the parsed method.
        split: the split's step.
        seed: the experiment's.
        weak_fit: the step that trains the weak supervisor.
        labels: the step in which it labels the transfer rows.
    """
    source, done = Source(labels), ""
    for op in method.ops:
        done = f"{done}+{op}" if done else op
        if op == "ensemble":
            source = Source(_ensemble(flow, split, seed, weak_fit, labels))
        elif op == "bootstrap":
            source = Source(_bootstrap(flow, done, source, split, seed))
        elif op == "relabel":
            source = _relabel(flow, done, source, split, seed)
        else:
            source = source.then(op, flow.config.method_args.of(op))
    return source


def _ensemble(flow: Flow, split: str, seed: int, weak_fit: str, labels: str) -> str:
    """Train and ask the further weak supervisors, then average: 2402.15505, 2406.03199, 2410.04571."""
    fits, answers = [weak_fit], [labels]
    for number, (settings, more) in enumerate(flow.config.ensemble_members, start=1):
        title = f"weak member {number}, seed {seed}"
        fits.append(flow.fit_step(title, settings, Source(side="weak"), split, seed + more))
        answers.append(flow.label_step(f"labels/{title}", f"labels of {title}", settings, split, fitted=fits[-1]))
    rule = flow.config.method_args.ensemble.weights

    def build(out: Path) -> None:
        folders = [flow.stages[f].path for f in fits]
        members = [LabelSet.load(flow.stages[a].path / "labels.parquet") for a in answers]
        labels = relabel.average(members, relabel.ensemble_weights(rule, folders))
        # Averaged decisions are shares of votes; where labels are hard, the majority is.
        (labels.hardened() if flow.config.weak.labels == "hard" else labels).save(out / "labels.parquet")

    inputs = (*fits, *answers) if rule == "accuracy" else tuple(answers)
    name, title = f"labels/ensemble, seed {seed}", f"labels of the ensemble, seed {seed}"
    return flow.derived_labels(name, title, {"ensemble": rule}, inputs, build, split)


def _bootstrap(flow: Flow, method: str, source: Source, split: str, seed: int) -> str:
    """Each model of the chain learns the labels of the one before and labels all rows: 2312.09390, section 4.3.1."""
    chain = flow.config.bootstrap_chain
    name = ""
    for number, settings in enumerate(chain, start=1):
        title = f"{method}, link {number} of {len(chain)}, seed {seed}"
        fitted = flow.fit_step(title, settings, source, split, seed)
        name = flow.label_step(f"labels/{title}", f"labels of {title}", settings, split, fitted=fitted)
        source = Source(name)
    return name


def _relabel(flow: Flow, method: str, source: Source, split: str, seed: int) -> Source:
    """Filter, train a first student, let it label the rows left out: 2503.04249; see `relabel.two_stage`."""
    shares = flow.config.method_args.relabel
    kept = source.then("filter", {"keep": shares.keep, "by_class": shares.by_class})
    title = f"{method}, first stage, seed {seed}"
    strong = flow.config.strong
    fitted = flow.fit_step(title, strong, kept, split, seed)

    def build(out: Path) -> None:
        labels = flow.labels_of(source, split, seed)
        left = relabel.discarded(labels, shares.keep, shares.by_class)
        again = flow.label_with(strong, fitted, left.row_id, harden=False)
        relabel.two_stage(labels, again, **shares.model_dump()).save(out / "labels.parquet")

    inputs = (fitted, split, *([source.stage] if source.stage else []))
    recipe = {"relabel": shares.model_dump(), "label_ops": source.ops, "seed": seed}
    code: tuple[Code, ...] = (flow.labels_of, *flow.source_code(source), flow.label_with, *answering_code(strong))
    title = f"labels of {title}"
    name = flow.derived_labels(f"labels/{method}, seed {seed}", title, recipe, inputs, build, split, code=code)
    return Source(name, share=shares.keep + (1 - shares.keep) * shares.add)
