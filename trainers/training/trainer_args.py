"""What `trainer_args` may hold: the fields of transformers' TrainingArguments that this suite's training loop acts on.

The loop, its losses, its data and its checkpoints are our own, so most fields of TrainingArguments would be read by nobody:
a `label_smoothing_factor` smooths no label here. What would be ignored is refused, and so is what a field of the experiment
decides, which would then say something else than what was done.
"""

from __future__ import annotations

from typing import Any

from w2s_tasks.errors import nearest
from w2s_tasks.user_text import shown

HONOURED = (
    "activation_checkpointing",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "ddp_backend",
    "ddp_bucket_cap_mb",
    "ddp_timeout",
    "deepspeed",
    "enable_jit_checkpoint",
    "fp16",
    "fsdp",
    "fsdp_config",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "logging_dir",
    "lr_scheduler_kwargs",
    "max_grad_norm",
    "max_steps",
    "optim",
    "optim_args",
    "project",
    "report_to",
    "run_name",
    "save_steps",
    "save_total_limit",
    "tf32",
    "trackio_space_id",
    "use_cpu",
)
INSTEAD = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "weight_decay": "weight_decay",
    "seed": "seeds",
    "data_seed": "seeds",
    "load_best_model_at_end": "checkpoint",
    "metric_for_best_model": "checkpoint",
    "greater_is_better": "checkpoint",
}
"""Fields of TrainingArguments that a field of the experiment decides."""
MOST_WORKERS = 256
"""Processes that load rows: torch starts as many as it is told, until the machine has no memory left."""
COUNTS = ("gradient_accumulation_steps", "save_steps", "max_steps")


def check_trainer_args(chosen: dict[str, Any]) -> dict[str, Any]:
    """The same arguments, if the training loop acts on all of them.

    Raises:
        ValueError: an argument that would be ignored, that a field of the experiment decides, or whose value is no count.
    """
    for key, value in chosen.items():
        if key in INSTEAD:
            raise ValueError(f"'{key}' is decided by the experiment's own field: set '{INSTEAD[key]}' instead")
        if key not in HONOURED:
            hint = nearest(key, HONOURED).strip()
            raise ValueError(f"'{key}' would be ignored. {hint or 'What counts: ' + ', '.join(HONOURED)}")
        if key in COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"'{key}' must be a whole number from 1 on, found {shown(value)}")
        if key == "dataloader_num_workers" and not (type(value) is int and 0 <= value <= MOST_WORKERS):
            raise ValueError(f"'{key}' must be a whole number of processes, 0 to {MOST_WORKERS}, found {shown(value)}")
    return chosen
