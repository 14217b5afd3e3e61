"""Commands to be pasted into a shell: how a model is measured again, and how an experiment is run again.

They hold absolute paths, so that they work in any folder; what the user named relative to the working folder (a model, rows
of a task's own) is found where the run was started.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path

from trainers.harness.evaluate import Harness, PromptStyle
from trainers.plugin_loader import given
from w2s_tasks import TASK_PATH
from w2s_tasks.models.loading import base_config, base_tokenizer
from w2s_tasks.models.packed_hf import usable_device
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.plugin.forms import parted
from w2s_tasks.sandbox import consent

OUR_TASKS = '"$(w2s tasks --path)"'
OWN_ARGUMENTS = ("token_budget",)
"""What `w2s-hf` takes and lm_eval's `hf` does not; it changes no number."""


def evaluation(ref: ModelRef, harness: Harness, task: str, style: PromptStyle, limit: int | None = None) -> str:
    """The command that asks a model the same questions again: the stock lm_eval's where that has the model, whole.

    Args:
        ref: the model.
        harness: the index that the task was loaded from.
        task: its name.
        style: how it is prompted.
        limit: its first documents; None for all.
    """
    words: list[str] = []
    own = "calibrate" in ref.args or parted(task).ending != ""  # lm_eval has neither calibration, forms nor further prompts
    if ref.model == "w2s-hf" and not own and not _resized(ref):
        args = {name: value for name, value in ref.args.items() if name not in OWN_ARGUMENTS}
        device = usable_device(str(args.pop("device", None) or ""))
        ref = ModelRef("hf", {**args, "dtype": args.get("dtype") or ("float32" if device == "cpu" else "auto")})
        words = ["--device", device]
    words += [] if style.num_fewshot is None else ["--num_fewshot", str(style.num_fewshot)]
    words += [] if limit is None else ["--limit", str(limit)]
    words += [consent.OPTION] if consent.given() else []
    words += ["--apply_chat_template"] if style.chat_template else []
    words += ["--fewshot_as_multiturn", "false"] if style.chat_template and not style.multiturn else []
    words += ["--system_instruction", style.system_prompt] if style.system_prompt else []
    first = shlex.join(["--model", ref.model, "--model_args", ref.model_args(), "--tasks", task])
    stock = ref.model == "hf"
    where = _include(harness.folder_of(task), stock)
    return f"{'lm_eval run' if stock else 'w2s eval'} {first}{where} {shlex.join(words)}".rstrip()


def _resized(ref: ModelRef) -> bool:
    """Whether lm_eval's `hf` would give the base under an adapter other embeddings: as many as its tokenizer has tokens."""
    if "peft" not in ref.args or "gguf_file" in ref.args:
        return False
    return _padded(*(ref.args.get(name) for name in ("pretrained", "tokenizer", "revision", "subfolder")))


@functools.cache  # all arms of an experiment have one base
def _padded(pretrained: str, tokenizer: str | None, revision: str | None, subfolder: str | None) -> bool:
    places = {name: value for name, value in (("revision", revision), ("subfolder", subfolder)) if value is not None}
    tokens = len(base_tokenizer({"pretrained": tokenizer or pretrained, **places}))
    return bool(base_config({"pretrained": pretrained, **places}).get_text_config().vocab_size != tokens)


def _include(folder: Path | None, stock: bool) -> str:
    """How a task's folder is named, where a command does not know it by itself."""
    if folder is None or (folder == TASK_PATH and not stock):
        return ""
    return f" --include_path {OUR_TASKS if folder == TASK_PATH else shlex.quote(str(folder))}"


def experiment(config: Path, runs_dir: Path) -> str:
    """The command that runs an experiment again; what is finished below `runs_dir` is found there."""
    agreed = [consent.OPTION] if consent.given() else []
    plugins = [word for source in given() for word in ("--plugin", source)]
    return shlex.join(["w2s", "run", str(config.absolute()), "--runs-dir", str(runs_dir.absolute()), *plugins, *agreed])
