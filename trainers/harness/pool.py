"""Loaded models: one base for all its adapters, and what the answers of a service cost."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lm_eval.api.model import LM
from lm_eval.api.registry import get_model

from trainers.store.costs import Budget, write_cost
from w2s_tasks import register
from w2s_tasks.keys import refuse
from w2s_tasks.models.ref import ENDPOINT_MODEL, TINKER_MODEL, VLLM_MODEL, ModelRef
from w2s_tasks.plugin.eval_arguments import check_arguments


class ModelPool:
    """Loaded models: one base at a time, with whichever of its adapters is asked for."""

    def __init__(self, budget: Budget | None = None) -> None:
        self._key: str | None = None
        self._lm: LM | None = None
        self.budget = budget or Budget()
        """What services may cost."""
        self.note: Callable[[str], None] = functools.partial(print, file=sys.stderr)
        """Takes lines for the user."""

    def load(self, ref: ModelRef) -> LM:
        """The lm_eval model of a ref; a base that is loaded already only changes its adapter."""
        args = dict(ref.args)
        changes = ref.model in ("w2s-hf", VLLM_MODEL)
        adapter = args.pop("peft", None) if changes else None
        calibrate = args.pop("calibrate", None) if ref.model == "w2s-hf" else None
        key = json.dumps([ref.model, args], sort_keys=True, default=str)
        paid = ref.model in (ENDPOINT_MODEL, TINKER_MODEL)
        limit = {"max_cost": self.budget.left} if paid and self.budget.left is not None else {}
        if key != self._key:
            self._lm, self._key = None, None
            register()
            refuse(args, f"arguments of {ref.model}")
            check_arguments(ref.model, args)
            self._lm = get_model(ref.model).create_from_arg_obj(args | limit, {})
        self._key = None  # until the adapter is on: one that fails may leave the base changed
        if changes:
            self._lm.use_adapter(Path(adapter) if adapter else None)  # type: ignore[union-attr]
        if ref.model == "w2s-hf":
            self._lm.use_calibration(calibrate)  # type: ignore[union-attr]
        self._key = key
        assert self._lm is not None  # noqa: S101 - for the type checker
        if limit:
            meter = self._lm.meter
            meter.max_cost = meter.cost + limit["max_cost"]
        return self._lm

    def take(self, ref: ModelRef) -> LM:
        """The lm_eval model of a ref, for who alters it: the pool has it no more, and loads its base anew when asked."""
        found = self.load(ref)
        self._lm, self._key = None, None
        return found

    @contextlib.contextmanager
    def booked(self, lm: LM, out: Path | None = None) -> Iterator[None]:
        """Book what a service's answers cost, and keep it in ``out``; local models cost nothing."""
        meter = getattr(lm, "meter", None)
        before = meter.cost if meter else 0.0
        try:
            yield
        finally:
            self.budget.book(meter.cost - before if meter else 0.0)
        if meter and out:
            write_cost(out, meter.cost - before, None)
