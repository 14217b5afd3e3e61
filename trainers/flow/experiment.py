"""The flow of one experiment, as a list of steps whose keys are known before anything runs.

    split -> weak.fit -> weak labels -> for each arm, method and seed: label operations, then lora.fit or openai_ft.fit
          -> lm_eval on every model: the training task, then the safety tasks -> report

What stands between the weak labels and a student (ensembles, chains, relabelling) is laid out in `trainers.flow.teachers`.

A step's key is the hash of its settings, the code, the renderer, the data and the keys of the steps it stands on. Running
the experiment means asking the store for each step in turn; what is there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config.experiment import AnyTrainable, Experiment, OpenAIStrong, is_plain
from trainers.config.methods import parse_method
from trainers.fit.trainer import TRAINERS, answering_code, training_code, training_style, untuned
from trainers.flow import teachers
from trainers.flow.progress import Progress
from trainers.flow.steps import Arm, Code, Source, Step
from trainers.harness import evaluate as hn
from trainers.labels import splits, unsupervised
from trainers.labels.arms import kind_of, operation
from trainers.labels.label_set import LabelSet
from trainers.store import processes
from trainers.store.costs import Budget
from trainers.store.stages import Stage, Store, recipe_key
from trainers.training import kept
from trainers.training import loop as training
from w2s_tasks.code_scope import code_hash
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models.ref import ModelRef, identity_of
from w2s_tasks.plugin.eval_arguments import check_arguments

log = logging.getLogger(__name__)

MODES = {"w2s-hf": "loglikelihood", "w2s-classifier": "classifier", "w2s-chat": "first_token"}


class Flow:
    """The steps of an experiment over one store."""

    def __init__(
        self,
        config: Experiment,
        run_folder: Path,
        harness: hn.Harness | None = None,
        *,
        pool: hn.ModelPool | None = None,
        identities: dict[str, str] | None = None,
    ) -> None:
        """Lay out the steps.

        Args:
            config: the experiment.
            run_folder: where the report goes, and the stages unless `run` is given a store.
            harness: task index to share between flows.
            pool: loaded models to share between flows.
            identities: model identities to share between flows, filled as they are found.
        """
        self.config, self.folder = config, run_folder
        self.harness = harness or hn.Harness(config.include_path)
        self.task = self.harness.task(config.task)
        self.task.check_trainable()
        self.safety_tasks = self.harness.load(config.safety.tasks) if config.safety else []
        self.asked_tasks = {n: self.harness.task(n) for n in (config.evaluate.task, config.evaluate.tuned_task) if n}
        self._check_limits()
        for task in (self.task, *self.asked_tasks.values(), *self.safety_tasks):
            task.check_evaluable()
        self.pool = pool or hn.ModelPool()
        self.steps: dict[str, Step] = {}
        self.stages: dict[str, Stage] = {}
        self._keys: dict[str, str] = {}
        self._split: dict[int, splits.Halves] = {}
        self._identities = identities if identities is not None else {}
        self._lay_out()

    def _check_limits(self) -> None:
        names = [t.name for t in self.safety_tasks]
        for name in self.config.safety.limits if self.config.safety else ():
            if name not in names:
                raise UserError(f"safety.limits: no task '{name}' here.{nearest(name, names)} Known: {', '.join(names)}.")

    # ---- what the steps are ------------------------------------------------------------------------------------

    def add(self, step: Step) -> str:
        """Add a step, unless one of its name is there; return the name."""
        self.steps.setdefault(step.name, step)
        return step.name

    def _lay_out(self) -> None:
        for name in self.config.arms:
            if name == "zero_shot" or self.config.few_shot_k(name):
                self._evaluations(Arm(name), None)
        for seed in self.config.seeds:
            self._lay_out_seed(seed)

    def _lay_out_seed(self, seed: int) -> None:
        config = self.config
        split = self.add(
            Step(
                f"split/{seed}",
                "split",
                f"split, seed {seed}",
                config.split.model_dump() | {"seed": config.split.seed + seed, "data": self.data_hash, **self._texts()},
                (),
                functools.partial(self._build_split, seed),
                lambda: len(self.task.train_docs),
                code=(hn.HarnessTask.source_texts,),
            )
        )
        arm = Arm("weak", "xent", seed)
        fitted = self.fit_step(arm.title, config.weak, Source(side="weak"), split, seed, arm=arm)
        labels = self.label_step(f"labels/{seed}", f"weak labels, seed {seed}", config.weak, split, fitted=fitted)
        self._evaluations(arm, fitted)
        if "weak_untrained" in config.arms:
            self._evaluations(Arm("weak_untrained", None, seed), None)
        for name in config.arms:
            if not is_plain(name):
                for method in config.methods if kind_of(name).teacher == "method" else ["xent"]:
                    arm = Arm(name, method, seed)
                    source = self._source(arm, split, fitted, labels)
                    loss = parse_method(method).loss
                    trained = self.fit_step(arm.title, config.strong, source, split, seed, loss=loss, arm=arm)
                    for at in (None, *config.evaluate.checkpoints):
                        self._evaluations(replace(arm, at=at), trained)

    def _texts(self) -> dict[str, str]:
        """What a split by source looks at, beside the rows."""
        return {"renderer": self.task.renderer_hash(hn.PromptStyle())} if self.config.split.by == "source" else {}

    def _source(self, arm: Arm, split: str, weak_fit: str, labels: str) -> Source:
        """What an arm's model learns from."""
        seed = arm.seed or 0
        if arm.kind.teacher == "method":
            return teachers.lay_out(self, parse_method(arm.method or "xent"), split, seed, weak_fit, labels)
        if arm.kind.teacher == "itself":
            title = f"labels of the strong model itself, seed {seed}"
            return Source(self.label_step(f"labels/self_labels, seed {seed}", title, self.config.strong, split))
        if arm.kind.teacher == "search":
            return Source(self._search_step(split, seed))
        if arm.kind.teacher == "weak":
            return Source(labels).then(arm.name)
        return Source(side="both" if arm.kind.teacher == "all gold" else "transfer").then(arm.name)

    def fit_step(
        self,
        title: str,
        settings: AnyTrainable,
        source: Source,
        split: str,
        seed: int,
        *,
        loss: str = "xent",
        arm: Arm | None = None,
    ) -> str:
        """A step that trains a model.

        Args:
            title: names the step.
            settings: model and hyperparameters.
            source: what to learn.
            split: the split's step.
            seed: of initialisation, order and label operations.
            loss: a name in `LOSSES`.
            arm: whose model it is; None for a model in between, which is not evaluated.
        """
        recipe = {
            "rows": "stage" if source.stage else source.side,
            "label_ops": source.ops,
            "loss": [loss, self.config.method_args.of(loss)],
            "seed": seed,
            "settings": settings.recipe(),
            "renderer": self.task.renderer_hash(training_style(settings)),
            "data": self.data_hash,
        }
        keep = tuple(self.config.evaluate.checkpoints) if arm and arm.kind.model == "strong" else ()
        if keep:
            recipe["keep"] = keep
        inputs = (split, source.stage) if source.stage else (split,)
        build = functools.partial(self._build_fit, settings, loss, source, split, seed, title, keep)
        rows = functools.partial(self._count_source, source, split)
        code = (*training_code(settings, loss), *self.source_code(source))
        step = Step(f"fit/{title}", "fit", f"train {title}", recipe, inputs, build, rows, arm, settings, code=code)
        return self.add(step)

    @staticmethod
    def source_code(source: Source) -> tuple[Code, ...]:
        """What makes a source's labels."""
        return hn.HarnessTask.gold_labels, *(operation(name) for name, _ in source.ops)

    def label_step(
        self,
        name: str,
        title: str,
        settings: AnyTrainable,
        split: str,
        *,
        fitted: str | None = None,
    ) -> str:
        """A step in which a model labels the transfer rows, softly or as `weak.labels` says.

        Args:
            name: of the step.
            title: for progress lines.
            settings: how the model prompts, and which it is where `fitted` is None.
            split: the split's step.
            fitted: the fit step whose model labels; None for the untuned model of `settings`.
        """
        kind = self.config.weak.labels
        recipe: dict[str, Any] = {"labels": kind, "renderer": self.task.renderer_hash(training_style(settings))}
        if not fitted:
            recipe |= {"args": settings.model_args}
        inputs = (fitted, split) if fitted else (split,)
        build = functools.partial(self._build_labels, settings, fitted, split)
        base, code = None if fitted else settings, answering_code(settings)
        return self.derived_labels(name, title, recipe, inputs, build, split, base=base, code=code)

    def derived_labels(
        self,
        name: str,
        title: str,
        recipe: dict[str, Any],
        inputs: tuple[str, ...],
        build: Callable[[Path], None],
        split: str,
        *,
        base: AnyTrainable | None = None,
        code: tuple[Code, ...] = (),
    ) -> str:
        """A labels step: `build` writes labels.parquet; see `Step` for the rest."""
        rows = functools.partial(self._count, split, "transfer")
        return self.add(Step(name, "labels", title, recipe, inputs, build, rows, base=base, code=code))

    def _search_step(self, split: str, seed: int) -> str:
        strong = self.config.strong
        recipe = {
            "unsupervised": self.config.unsupervised.model_dump(),
            "seed": seed,
            "args": strong.model_args,
            "renderer": self.task.renderer_hash(hn.PromptStyle()),
        }
        build = functools.partial(self._build_search, split, seed)
        name, title = f"labels/unsupervised, seed {seed}", f"labels without a teacher, seed {seed}"
        return self.derived_labels(name, title, recipe, (split,), build, split, base=strong, code=answering_code(strong))

    def _evaluations(self, arm: Arm, fitted: str | None) -> None:
        self._evaluation_step("evaluate", arm, fitted, {self.asked(arm): self.config.evaluate.limit})
        safety = self.config.safety
        # A sentiment head can't answer an ethics question, so a classifier gets no safety evaluation; a few-shot arm is the
        # untuned model again.
        if safety and not self._is_classifier(arm) and not self.config.few_shot_k(arm.name):
            limits = {t: safety.limits.get(t.name, safety.limit) for t in self.safety_tasks}
            for shots in safety.shots[: None if arm.at is None else 1]:  # the ladder is for the end of training
                self._evaluation_step("safety", arm, fitted, limits, shots)

    def asked(self, arm: Arm) -> hn.HarnessTask:
        """The task that evaluates an arm: the training task, or one that asks the same documents another way."""
        evaluate = self.config.evaluate
        name = evaluate.task if is_plain(arm.name) else evaluate.tuned_task or evaluate.task
        return self.asked_tasks[name] if name and arm.kind.model == "strong" else self.task

    def main_evaluation(self, arm: Arm) -> tuple[str, hn.PromptStyle, int | None]:
        """What an arm is measured by: task, prompt style, limit."""
        return self.asked(arm).name, self._style("evaluate", arm, None), self.config.evaluate.limit

    def _is_classifier(self, arm: Arm) -> bool:
        return TRAINERS[getattr(self.config, arm.kind.model).trainer].model == "w2s-classifier"

    def _evaluation_step(
        self,
        kind: str,
        arm: Arm,
        fitted: str | None,
        limits: Mapping[hn.HarnessTask, int | None],
        shots: int | None = None,
    ) -> None:
        """An evaluation; of the safety tasks one for each number of shots, the first of which is the main one."""
        style = self._style(kind, arm, shots)
        main = kind == "evaluate" or self.config.safety is None or shots == self.config.safety.shots[0]
        what = "evaluate" if kind == "evaluate" else "safety of"
        name, title = f"{kind}/{arm.title}", f"{what} {arm.title}"
        if not main:
            name, title = f"{kind}@{shots}/{arm.title}", f"{title}, {shots} shots"
        recipe: dict[str, Any] = {
            "tasks": {t.name: [t.renderer_hash(style), t.eval_hash(limit)] for t, limit in limits.items()},
            "style": vars(style),
            "untrained": None if fitted else vars(self.model_of(arm)),
        }
        if arm.at is not None:
            recipe["at"] = arm.at
        for task in limits:
            task.check_shots(style)
        self.add(
            Step(
                name,
                kind,
                title,
                recipe,
                (fitted,) if fitted else (),
                functools.partial(self._build_evaluation, arm, limits, style),
                lambda: sum(t.eval_rows(limit) for t, limit in limits.items()),
                arm,
                None if fitted else getattr(self.config, arm.kind.model),
                {t.name: t.eval_rows(limit) for t, limit in limits.items()},
                answering_code(getattr(self.config, arm.kind.model)),
            )
        )

    def _style(self, kind: str, arm: Arm, shots: int | None) -> hn.PromptStyle:
        """How an arm is prompted; `shots` counts in the safety evaluation, None for each task's own number."""
        safety = self.config.safety
        if kind == "evaluate":
            shots = self.config.few_shot_k(arm.name) or self.config.evaluate.num_fewshot
        style = training_style(getattr(self.config, arm.kind.model), shots)
        return replace(style, multiturn=safety.fewshot_as_multiturn) if kind == "safety" and safety else style

    # ---- keys -------------------------------------------------------------------------------------------------

    @property
    def data_hash(self) -> str:
        """Hash of the training split's rows."""
        return self.task.train_hash

    def _identity(self, settings: AnyTrainable | None) -> str | None:
        if settings is None:
            return None
        if isinstance(settings, OpenAIStrong):
            return f"{settings.base_url}#{settings.model}"
        revision = str(settings.model_args.get("revision", "main"))
        name = f"{settings.model}@{revision}"
        if name not in self._identities:
            self._identities[name] = identity_of(settings.model, revision)
        return self._identities[name]

    def recipe(self, name: str) -> dict[str, Any]:
        """All that a step's result depends on; its hash is the stage's key."""
        step = self.steps[name]
        return {
            "kind": step.kind,
            "code": code_hash([step.build, *step.code]),
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
        """The split of a seed; made once, because a plan asks for it at every step."""
        if seed not in self._split:
            self._split[seed] = self._make_halves(seed)
        return self._split[seed]

    def _make_halves(self, seed: int) -> splits.Halves:
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

    def _count_source(self, source: Source, split: str) -> int:
        sides = ("weak", "transfer") if source.side == "both" else (source.side,)
        return round(source.share * sum(self._count(split, side) for side in sides))

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
        return self.task.gold_labels(ids, self._docs(ids))

    def label_with(
        self, settings: AnyTrainable, fitted: str | None, ids: Sequence[str], *, harden: bool | None = None
    ) -> LabelSet:
        """Let a model label rows: the one of a fit step, or the untuned one of `settings`.

        Args:
            settings: how it prompts.
            fitted: the fit step.
            ids: the rows.
            harden: all weight on the most probable choice; None as `weak.labels` says.
        """
        lm = self.pool.load(ModelRef.load(self.stages[fitted].path) if fitted else self._untuned(settings))
        labels = hn.label(lm, self.task, self._docs(ids), ids, training_style(settings))
        hard = self.config.weak.labels == "hard" if harden is None else harden
        return labels.hardened() if hard else labels

    def _build_labels(self, settings: AnyTrainable, fitted: str | None, split: str, out: Path) -> None:
        ids = self._side(split, "transfer")
        labels = self.label_with(settings, fitted, ids)
        # Gold labels are checked here, before hours of training: a label outside the choices stops the run.
        self._gold(ids)
        labels.save(out / "labels.parquet")

    def _build_search(self, split: str, seed: int, out: Path) -> None:
        if not processes.is_main():
            return  # a search is one chain of small questions: nothing to share out
        gold = self._gold(self._side(split, "transfer"))
        lm = self.pool.load(self._untuned(self.config.strong))
        docs, settings = self._docs(gold.row_id), self.config.unsupervised
        labels = unsupervised.label_without_teacher(self.task, lm, docs, gold, settings, seed, out)
        labels.save(out / "labels.parquet")

    def labels_of(self, source: Source, split: str, seed: int) -> LabelSet:
        """The labels that a source stands for, once its stages are there.

        Raises:
            UserError: an operation left no row.
        """
        if source.stage:
            labels = LabelSet.load(self.stages[source.stage].path / "labels.parquet")
        else:
            sides = ("weak", "transfer") if source.side == "both" else (source.side,)
            labels = self._gold([i for side in sides for i in self._side(split, side)])
        for name, settings in source.ops:
            # A seed of its own for each operation, so that adding an arm changes no other.
            number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
            labels = operation(name)(labels, np.random.default_rng([number, seed]), **settings)
        return labels

    def _build_fit(
        self,
        settings: AnyTrainable,
        loss: str,
        source: Source,
        split: str,
        seed: int,
        title: str,
        keep: tuple[float, ...],
        out: Path,
    ) -> None:
        labels = self.labels_of(source, split, seed)
        labels.save(out / "labels.parquet")
        ref = TRAINERS[settings.trainer].fit(
            self.task,
            self._docs(labels.row_id),
            labels,
            settings,
            out,
            pool=self.pool,
            method=loss,
            loss_args=self.config.method_args.of(loss),
            seed=seed,
            title=f"train {title}",
            **({"keep": keep} if keep else {}),
        )
        ref.save(out)

    def model_of(self, arm: Arm) -> ModelRef:
        """The model that an arm led to (after its step ran), or the one that it starts with."""
        fitted = self.stages.get(f"fit/{replace(arm, at=None).title}")
        if fitted is not None:
            ref = ModelRef.load(fitted.path)
            adapter = {} if arm.at is None else {"peft": str(kept.adapter_at(fitted.path, arm.at))}
            return replace(ref, args={**ref.args, **adapter})
        return self._untuned(getattr(self.config, arm.kind.model))

    def _untuned(self, settings: AnyTrainable) -> ModelRef:
        return untuned(settings, self.task.choices)

    def _build_evaluation(
        self, arm: Arm, limits: Mapping[hn.HarnessTask, int | None], style: hn.PromptStyle, out: Path
    ) -> None:
        hn.evaluate(self.harness, self.pool, self.model_of(arm), limits, out, style=style)

    # ---- running ----------------------------------------------------------------------------------------------

    def run(self, progress: Progress, store: Store | None = None) -> None:
        """Build every step that is not there; afterwards `stages` holds them all.

        Args:
            progress: says what is under way.
            store: where the stages are; by default the run folder's own.

        Raises:
            UserError: with what to do; what was finished stays.
        """
        store = store or Store(self.folder)
        self.pool.note = progress.note
        for name, settings in (("weak", self.config.weak), ("strong", self.config.strong)):
            self._check_models(name, settings)
        for number, (name, step) in enumerate(self.steps.items(), start=1):
            there = store.find(step.kind, self.key(name)) if progress.new_only else None
            if there:
                self.pool.budget.book_stage(there.path, reused=True)
                self.stages[name] = there
                continue
            with progress.step(number, len(self.steps), step.title) as shown:
                stage = store.build(step.kind, self.recipe(name), step.build)
                self.stages[name] = stage
                self.pool.budget.book_stage(stage.path, reused=stage.reused)
                shown.done(stage.seconds, stage.reused)

    def _check_models(self, section: str, settings: AnyTrainable) -> None:
        """Refuse what a model or its training would not take, before any is trained."""
        ref = self._untuned(settings)
        check_arguments(ref.model, ref.args, f"{section}.model_args")
        if not isinstance(settings, OpenAIStrong):
            training.check_arguments(settings, settings.lr)
        if check := TRAINERS[settings.trainer].check:
            check(settings)

    def arms(self) -> list[Arm]:
        """All arms with an evaluation, at the end of training; the weak supervisor first, then as the config lists them."""
        found = [s.arm for s in self.steps.values() if s.kind == "evaluate" and s.arm and s.arm.at is None]
        order = ["weak", "weak_untrained", *(a for a in self.config.arms if kind_of(a).model == "strong")]
        return sorted(found, key=lambda a: (order.index(a.name), a.seed or 0))


def open_flow(config: Experiment, runs_dir: Path, max_cost: float | None = None) -> Flow:
    """The flow of a config over its run folder; ``max_cost`` is what services may cost in all, in USD."""
    return Flow(config, runs_dir / config.name, pool=hn.ModelPool(Budget(max_cost)))
