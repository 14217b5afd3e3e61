"""The flow of one experiment, as a list of steps whose keys are known before anything runs.

    split -> weak.fit -> weak labels -> for each arm, method and seed: label operation, then lora.fit or openai_ft.fit
          -> lm_eval on every model: the training task, then the safety tasks -> report

A step's key is the hash of its settings, the code, the renderer, the data and the keys of the steps it stands on. Running
the experiment means asking the store for each step in turn; what is there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainers import harness as hn
from trainers import lora, openai_ft, splits, weak
from trainers.config import PLAIN_ARMS, Experiment, OpenAIStrong, Trainable
from trainers.costs import Budget, read_cost
from trainers.label_ops import LABEL_OPS, WITHOUT_TEACHER
from trainers.labels import LabelSet, gold_labels
from trainers.progress import Progress
from trainers.store import Stage, Store, code_version, recipe_key
from w2s_tasks.models.ref import ModelRef, identity_of

log = logging.getLogger(__name__)

MODES = {"w2s-hf": "loglikelihood", "w2s-classifier": "classifier", "w2s-chat": "first_token"}
STRONG: dict[str, Any] = {"lora": lora, "openai": openai_ft}
"""The trainers of the strong model: base_ref, style_of, fit."""


@dataclass(frozen=True)
class Arm:
    """One model of the report: how it came about, under which method and seed (None where nothing was trained)."""

    name: str
    method: str | None = None
    seed: int | None = None

    @property
    def title(self) -> str:
        """For progress lines and figures."""
        parts = [self.name]
        parts += [self.method] if self.method and self.method != "xent" else []
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        return ", ".join(parts)


def _section(arm: Arm) -> str:
    return "weak" if arm.name.startswith("weak") else "strong"


@dataclass(frozen=True)
class Step:
    """One stage to be: its name in the flow, what it stands on, its settings, and how to build it."""

    name: str
    kind: str
    title: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    build: Callable[[Path], None] = field(repr=False)
    rows: Callable[[], int] = field(repr=False)
    arm: Arm | None = None
    base: str | None = None
    """The config's section whose model this step loads: weak, strong, or None where its inputs say all."""


class Flow:
    """The steps of an experiment over one store."""

    def __init__(
        self, config: Experiment, run_folder: Path, harness: hn.Harness | None = None, budget: Budget | None = None
    ) -> None:
        self.config, self.folder = config, run_folder
        self.harness = harness or hn.Harness(config.include_path)
        self.task = self.harness.task(config.task)
        self.task.check_trainable()
        self.safety_tasks = self.harness.load(config.safety.tasks) if config.safety else []
        self.asked_tasks = {n: self.harness.task(n) for n in (config.evaluate.task, config.evaluate.tuned_task) if n}
        self.strong = STRONG[config.strong.trainer]
        self.pool = hn.ModelPool(budget)
        self.steps: dict[str, Step] = {}
        self.stages: dict[str, Stage] = {}
        self._keys: dict[str, str] = {}
        self._identities: dict[str, str] = {}
        self._lay_out()

    # ---- what the steps are ------------------------------------------------------------------------------------

    def _add(self, step: Step) -> str:
        self.steps[step.name] = step
        return step.name

    def _lay_out(self) -> None:
        for name in ("zero_shot", "few_shot"):
            if name in self.config.arms:
                self._evaluations(Arm(name), None)
        for seed in self.config.seeds:
            self._lay_out_seed(seed)

    def _lay_out_seed(self, seed: int) -> None:
        config = self.config
        split = self._add(
            Step(
                f"split/{seed}",
                "split",
                f"split, seed {seed}",
                config.split.model_dump() | {"seed": config.split.seed + seed, "data": self.data_hash},
                (),
                functools.partial(self._build_split, seed),
                lambda: len(self.task.train_docs),
            )
        )
        fitted = self._fit_step(Arm("weak", "xent", seed), config.weak, (split,), lambda: self._count(split, "weak"))
        labels = self._add(
            Step(
                f"labels/{seed}",
                "labels",
                f"weak labels, seed {seed}",
                {"labels": config.weak.labels, "renderer": self.task.renderer_hash(self._weak_style)},
                (fitted, split),
                functools.partial(self._build_labels, fitted, split),
                lambda: self._count(split, "transfer"),
            )
        )
        self._evaluations(Arm("weak", "xent", seed), fitted)
        if "weak_untrained" in config.arms and config.weak.trainer == "classifier":
            self._evaluations(Arm("weak_untrained", None, seed), None)
        for name in config.arms:
            if name not in PLAIN_ARMS:
                for method in config.methods if name == "student" else ["xent"]:
                    arm = Arm(name, method, seed)
                    inputs = (split,) if name in WITHOUT_TEACHER else (split, labels)
                    fitted = self._fit_step(arm, config.strong, inputs, lambda: self._count(split, "transfer"))
                    self._evaluations(arm, fitted)

    def _fit_step(
        self, arm: Arm, settings: Trainable | OpenAIStrong, inputs: tuple[str, ...], rows: Callable[[], int]
    ) -> str:
        style = self._weak_style if arm.name == "weak" else self.strong.style_of(self.config.strong)
        recipe = {
            "arm": arm.name,
            "method": arm.method,
            "seed": arm.seed,
            "settings": settings.recipe(),
            "renderer": self.task.renderer_hash(style),
            "data": self.data_hash,
        }
        build = functools.partial(self._build_fit, arm, inputs)
        return self._add(
            Step(f"fit/{arm.title}", "fit", f"train {arm.title}", recipe, inputs, build, rows, arm, _section(arm))
        )

    def _evaluations(self, arm: Arm, fitted: str | None) -> None:
        self._evaluation_step("evaluate", arm, fitted, [self._asked(arm)], self.config.evaluate.limit)
        # A sentiment head can't answer an ethics question, so a classifier gets no safety evaluation.
        if self.config.safety and not (_section(arm) == "weak" and self.config.weak.trainer == "classifier"):
            self._evaluation_step("safety", arm, fitted, self.safety_tasks, self.config.safety.limit)

    def _asked(self, arm: Arm) -> hn.HarnessTask:
        """The task that evaluates an arm: the training task, or one that asks the same documents another way."""
        evaluate = self.config.evaluate
        name = evaluate.task
        if arm.name not in PLAIN_ARMS:
            name = evaluate.tuned_task or name
        return self.asked_tasks[name] if name and _section(arm) == "strong" else self.task

    def _evaluation_step(
        self, kind: str, arm: Arm, fitted: str | None, tasks: Sequence[hn.HarnessTask], limit: int | None
    ) -> None:
        style = self._style(kind, arm)
        recipe = {
            "tasks": {t.name: [t.renderer_hash(style), t.eval_hash(limit)] for t in tasks},
            "limit": limit,
            "style": vars(style),
            "arm": None if fitted else arm.name,
            "base": None if fitted else self._base_settings(arm),
        }
        names = [t.name for t in tasks]
        self._add(
            Step(
                f"{kind}/{arm.title}",
                kind,
                f"{'evaluate' if kind == 'evaluate' else 'safety of'} {arm.title}",
                recipe,
                (fitted,) if fitted else (),
                functools.partial(self._build_evaluation, arm, fitted, names, style, limit),
                lambda: sum(t.eval_rows(limit) for t in tasks),
                arm,
                None if fitted else _section(arm),
            )
        )

    def _style(self, kind: str, arm: Arm) -> hn.PromptStyle:
        evaluate, safety = self.config.evaluate, self.config.safety
        shots = safety.num_fewshot if kind == "safety" and safety else evaluate.num_fewshot
        if arm.name == "few_shot" and kind == "evaluate":
            shots = evaluate.few_shot_k
        if _section(arm) == "weak":
            return hn.PromptStyle(shots, self._weak_style.chat_template)
        return self.strong.style_of(self.config.strong, shots)

    # ---- keys -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def data_hash(self) -> str:
        """Hash of the training split's rows."""
        return hashlib.sha256("\n".join(self.task.train_ids).encode()).hexdigest()[:16]

    @property
    def _weak_style(self) -> hn.PromptStyle:
        return lora.style_of(self.config.weak) if self.config.weak.trainer == "lora" else hn.PromptStyle()

    def _base_settings(self, arm: Arm) -> dict[str, Any]:
        section = self.config.weak if _section(arm) == "weak" else self.config.strong
        return {"model": section.model, "args": section.model_args, "text": getattr(section, "text", None)}

    def _identity(self, section: str | None) -> str | None:
        if section is None:
            return None
        if section not in self._identities:
            settings = self.config.weak if section == "weak" else self.config.strong
            if isinstance(settings, OpenAIStrong):
                self._identities[section] = f"{settings.base_url}#{settings.model}"
            else:
                self._identities[section] = identity_of(settings.model, str(settings.model_args.get("revision", "main")))
        return self._identities[section]

    def recipe(self, name: str) -> dict[str, Any]:
        """All that a step's result depends on; its hash is the stage's key."""
        step = self.steps[name]
        return {
            "kind": step.kind,
            "code": code_version(),
            "settings": step.settings,
            "inputs": {i: self.key(i) for i in step.inputs},
            "model": self._identity(step.base),
        }

    def key(self, name: str) -> str:
        """The stage key of a step."""
        if name not in self._keys:
            self._keys[name] = recipe_key(self.recipe(name))
        return self._keys[name]

    # ---- how each is built ------------------------------------------------------------------------------------

    def _halves(self, seed: int) -> splits.Halves:
        split = self.config.split
        number = split.seed + seed
        if split.by == "study":
            return splits.split_as_study(len(self.task.train_docs))
        if split.by == "row":
            return splits.split_by_row(len(self.task.train_docs), split.weak, number)
        texts, contained = self.task.source_texts()
        return splits.split_by_source(texts, split.weak, number, contained=contained)

    def _build_split(self, seed: int, out: Path) -> None:
        halves, limit = self._halves(seed), self.config.split.limit
        ids = self.task.train_ids
        data = {
            "weak": [ids[i] for i in splits.limited(halves.weak, limit.weak, "weak")],
            "transfer": [ids[i] for i in splits.limited(halves.transfer, limit.transfer, "transfer")],
            "dropped": halves.dropped,
        }
        (out / "split.json").write_text(json.dumps(data), encoding="utf-8")

    def _count(self, split: str, side: str) -> int:
        if split in self.stages:
            return len(self._side(split, side))
        halves = self._halves(int(split.split("/")[1]))
        return len(splits.limited(getattr(halves, side), getattr(self.config.split.limit, side), side))

    def _side(self, split: str, side: str) -> list[str]:
        data = json.loads((self.stages[split].path / "split.json").read_text(encoding="utf-8"))
        ids: list[str] = data[side]
        return ids

    @functools.cached_property
    def _doc_of(self) -> dict[str, dict[str, Any]]:
        return dict(zip(self.task.train_ids, self.task.train_docs, strict=True))

    def _docs(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return [self._doc_of[i] for i in ids]

    def _gold(self, ids: Sequence[str]) -> LabelSet:
        return gold_labels(ids, [self.task.gold(doc) for doc in self._docs(ids)], len(self.task.choices))

    def _build_labels(self, fitted: str, split: str, out: Path) -> None:
        ids = self._side(split, "transfer")
        lm = self.pool.load(ModelRef.load(self.stages[fitted].path))
        labels = hn.label(lm, self.task, self._docs(ids), ids, self._weak_style)
        # Gold labels are checked here, before hours of training: a label outside the choices stops the run.
        self._gold(ids)
        (labels if self.config.weak.labels == "soft" else labels.hardened()).save(out / "labels.parquet")

    def _arm_labels(self, arm: Arm, inputs: tuple[str, ...]) -> LabelSet:
        if arm.name == "weak":
            return self._gold(self._side(inputs[0], "weak"))
        if arm.name in WITHOUT_TEACHER:
            labels = self._gold(self._side(inputs[0], "transfer"))
        else:
            labels = LabelSet.load(self.stages[inputs[1]].path / "labels.parquet")
        if arm.name == "self_labels":
            lm = self.pool.load(self.strong.base_ref(self.config.strong))
            style = self.strong.style_of(self.config.strong)
            return hn.label(lm, self.task, self._docs(labels.row_id), labels.row_id, style)
        # A seed of its own for each arm, so that adding an arm changes no other.
        number = int(hashlib.sha256(arm.name.encode()).hexdigest()[:8], 16)
        return LABEL_OPS[arm.name](labels, np.random.default_rng([number, arm.seed or 0]))

    def _build_fit(self, arm: Arm, inputs: tuple[str, ...], out: Path) -> None:
        labels = self._arm_labels(arm, inputs)
        labels.save(out / "labels.parquet")
        settings = self.config.weak if arm.name == "weak" else self.config.strong
        fit: Any = weak.fit if settings.trainer == "classifier" else STRONG[settings.trainer].fit
        ref = fit(
            self.task,
            self._docs(labels.row_id),
            labels,
            settings,
            out,
            pool=self.pool,
            method=arm.method or "xent",
            seed=arm.seed or 0,
            title=f"train {arm.title}",
        )
        ref.save(out)

    def model_of(self, arm: Arm) -> ModelRef:
        """The model that an arm led to (after its step ran), or the one that it starts with."""
        fitted = f"fit/{arm.title}"
        if fitted in self.stages:
            return ModelRef.load(self.stages[fitted].path)
        if arm.name == "weak_untrained":
            return weak.untrained(self.config.weak, self.task.choices)
        return self.strong.base_ref(self.config.strong)

    def _build_evaluation(
        self, arm: Arm, fitted: str | None, tasks: list[str], style: hn.PromptStyle, limit: int | None, out: Path
    ) -> None:
        ref = ModelRef.load(self.stages[fitted].path) if fitted else self.model_of(arm)
        hn.evaluate(self.harness, self.pool, ref, tasks, out, style=style, limit=limit)

    # ---- running ----------------------------------------------------------------------------------------------

    def run(self, progress: Progress) -> None:
        """Build every step that is not there; afterwards `stages` holds them all.

        Raises:
            UserError: with what to do; what was finished stays.
        """
        store = Store(self.folder)
        self.pool.note = progress.note
        for number, (name, step) in enumerate(self.steps.items(), start=1):
            with progress.step(number, len(self.steps), step.title) as shown:
                stage = store.build(step.kind, self.recipe(name), step.build)
                self.stages[name] = stage
                if stage.reused:
                    self.pool.budget.book(read_cost(stage.path))
                shown.done(stage.seconds, stage.reused)

    def arms(self) -> list[Arm]:
        """All arms with an evaluation, the weak supervisor first, then as the config lists them."""
        found = [s.arm for s in self.steps.values() if s.kind == "evaluate" and s.arm]
        order = ["weak", "weak_untrained", *[a for a in self.config.arms if not a.startswith("weak")]]
        return sorted(found, key=lambda a: (order.index(a.name), a.seed or 0))


def open_flow(config: Experiment, runs_dir: Path, max_cost: float | None = None) -> Flow:
    """The flow of a config over its run folder; ``max_cost`` is what services may cost, in USD."""
    return Flow(config, runs_dir / config.name, budget=Budget(max_cost))
