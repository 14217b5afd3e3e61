"""Tasks and models for lm-evaluation-harness that serve weak-to-strong research.

Usable without the trainers: ``lm_eval run --include_path "$(w2s tasks --path)" --tasks w2s_sst2 ...`` needs only that
this package is installed. ``register()`` adds the names of the models in `MODELS` to lm_eval's registry.
"""

from __future__ import annotations

import functools
from pathlib import Path

__version__ = "0.1.0"

TASK_PATH = Path(__file__).parent / "tasks"
"""The folder for lm_eval's ``--include_path``."""

MODELS = {
    "w2s-hf": "w2s_tasks.models.packed_hf:W2SHF",
    "w2s-classifier": "w2s_tasks.models.classifier:W2SClassifier",
    "w2s-recorded": "w2s_tasks.models.recorded:Recorded",
    "w2s-chat": "w2s_tasks.models.chat.model:W2SChat",
    "w2s-vllm": "w2s_tasks.models.vllm.model:W2SVLLM",
    "w2s-tinker": "w2s_tasks.models.tinker.model:W2STinker",
}

COMPILED_TEMPLATES = 1024
"""How many are kept: several for each task, and no more where a task makes its templates from documents."""


def register() -> None:
    """Add our models to lm_eval's registry, lazily; calling it again changes nothing."""
    # lm_eval fills its registry with the built-in models only while it is empty, so they have to come first.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)
    _compile_templates_once()


def _compile_templates_once() -> None:
    """Let lm_eval keep the templates that it compiled: it compiles them anew for every document (90 % of rendering)."""
    from lm_eval.utils import env

    if "from_string" not in vars(env):
        vars(env)["from_string"] = functools.lru_cache(maxsize=COMPILED_TEMPLATES)(env.from_string)
