"""Settings that a user wrote and that change nothing in this experiment: what they are for is not part of it.

Settings that contradict each other are refused where they are read; these are only told, because an experiment file may
hold settings for methods and arms that another command line asks for.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainers.config.experiment import Experiment
from trainers.config.methods import parse_method
from trainers.fit.trainer import training_style
from trainers.labels.arms import ARMS, is_plain, kind_of


def _inactive(config: Experiment) -> Iterator[tuple[str, str]]:
    """Each setting as it is written, and what would use it."""
    methods = [parse_method(name) for name in config.methods]
    parts = {part for method in methods for part in (*method.ops, method.loss)} if "student" in config.arms else set()
    for part in sorted(config.method_args.model_fields_set - parts):
        yield f"method_args.{part}", f"the arm student with a method {part}"
    if "unsupervised" in config.model_fields_set and not any(kind_of(arm).teacher == "search" for arm in config.arms):
        yield "unsupervised", "the arm unsupervised"
    if "generate" in config.model_fields_set and config.labels != "generate":
        yield "generate", "labels: generate"
    evaluate, safety = config.evaluate, config.safety
    if "few_shot_k" in evaluate.model_fields_set and not any(name in ARMS and ARMS[name].shots for name in config.arms):
        yield "evaluate.few_shot_k", "the arms few_shot, in_context and random_shots without a number of their own"
    if config.tune is not None and all(is_plain(name) or kind_of(name).shots for name in config.arms):
        yield "tune", "an arm that is trained"
    if all(map(is_plain, config.arms)):
        for key in sorted({"checkpoints", "tuned_task"} & evaluate.model_fields_set):
            yield f"evaluate.{key}", "an arm that is trained"
    if evaluate.shot_seeds and not evaluate.num_fewshot and not any(kind_of(name).shots == "gold" for name in config.arms):
        yield "evaluate.shot_seeds", "the arm few_shot, or evaluate.num_fewshot above 0"
    if safety and safety.shot_seeds and safety.shots[0] == 0:
        yield "safety.shot_seeds", "safety.num_fewshot whose first number is above 0"
    if safety and "fewshot_as_multiturn" in safety.model_fields_set:
        if not training_style(config.strong).chat_template:
            yield "safety.fewshot_as_multiturn", "strong.chat_template: true"
        elif safety.shots == [0]:
            yield "safety.fewshot_as_multiturn", "safety.num_fewshot above 0"


def unused(config: Experiment) -> list[str]:
    """A sentence for every setting that a user wrote and that nothing in the experiment uses."""
    return [f"{setting} changes nothing here: it is for {user}" for setting, user in _inactive(config)]
