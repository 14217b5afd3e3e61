"""The trainers learn what they are told, score as lm_eval does, and go on where they were stopped."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file

from trainers.fit import classifier as weak
from trainers.fit import heads, language_model, lora
from trainers.fit.classifier import Classifier
from trainers.fit.full import Full
from trainers.fit.lora import Lora
from trainers.fit.probe import Probe
from trainers.fit.trainer import TRAINERS
from trainers.harness import evaluate as hn
from trainers.labels.ask import label
from trainers.labels.gold import gold_labels
from trainers.labels.label_set import LabelSet
from trainers.training import loop as training
from trainers.training.checkpoints import newest_checkpoint
from trainers.training.losses import State, xent
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import folder_hash


def _task(folder: Path) -> hn.HarnessTask:
    return hn.Harness([str(folder)]).task("own_reviews")


def _right(task: hn.HarnessTask, labels: LabelSet) -> float:
    """Share of the evaluation rows that are labelled rightly."""
    return float((labels.hard == [task.gold(doc) for doc in task.task.eval_docs]).mean())


def _gold(task: hn.HarnessTask, n: int) -> LabelSet:
    return gold_labels(task.train_ids[:n], [task.gold(d) for d in task.train_docs[:n]], 2)


def test_cross_entropy_by_hand():
    logprobs = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).log()
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    expected = [-np.log(0.7), -0.5 * (np.log(0.2) + np.log(0.8))]
    assert xent(logprobs, targets, State()).tolist() == pytest.approx(expected)


CHOICE_SETS = [["negative", "positive"], ["0", "1"], ['"0"', '"1"'], ["1", "10"], ["not wrong at all", "wrong"]]


@pytest.mark.parametrize("choices", CHOICE_SETS)
@pytest.mark.parametrize("chat", [False, True])
def test_the_trainer_scores_every_choice_as_lm_eval_does(own_task: Path, causal_model, choices: list[str], chat: bool):
    yaml = own_task / "own_reviews.yaml"
    yaml.write_text(yaml.read_text().replace('["negative", "positive"]', json.dumps(choices)))
    task, folder = _task(own_task), str(causal_model("llama"))
    ours = hn.ModelPool().load(lora.base_ref(Lora(model=folder)))
    style = hn.PromptStyle(chat_template=chat, system_prompt="Be brief." if chat else None)
    docs = task.train_docs[:6]
    requests = [ours.encode(task.pairs(doc, style, ours)) for doc in docs]
    with torch.no_grad():
        found = language_model.choice_logprobs(ours.language_model, requests, torch.zeros(len(docs), 2), ours.max_length)
    theirs = HFLM(folder, device="cpu", dtype="float32", batch_size=1)
    logliks = torch.tensor([a[0] for a in theirs.loglikelihood(task.requests(docs, style, theirs), disable_tqdm=True)])
    assert torch.allclose(found, logliks.view(-1, 2).log_softmax(-1), atol=1e-4)


@pytest.mark.pypi
def test_the_trainer_scores_choices_with_a_common_first_token_as_lm_eval_does(own_task: Path, smollm2: str):
    yaml = own_task / "own_reviews.yaml"
    yaml.write_text(yaml.read_text().replace('["negative", "positive"]', '["0", "1"]'))
    task = _task(own_task)
    ours = hn.ModelPool().load(lora.base_ref(Lora(model=smollm2)))
    first = [ours.encode(task.pairs(task.train_docs[0], hn.PromptStyle()))[k][1][0] for k in (0, 1)]
    assert first[0] == first[1]  # SmolLM2 splits ' 0' and ' 1' after the space
    requests = [ours.encode(task.pairs(doc, hn.PromptStyle())) for doc in task.train_docs[:3]]
    with torch.no_grad():
        found = language_model.choice_logprobs(ours.language_model, requests, torch.zeros(3, 2), ours.max_length)
    theirs = HFLM(smollm2, device="cpu", dtype="float32")
    answers = theirs.loglikelihood(task.requests(task.train_docs[:3], hn.PromptStyle(), theirs), disable_tqdm=True)
    assert torch.allclose(found, torch.tensor([a[0] for a in answers]).view(-1, 2).log_softmax(-1), atol=1e-4)


def _lora(folder: Path, **more: object) -> Lora:
    return Lora(model=str(folder), r=8, lr=1e-2, batch_size=16, epochs=3, **more)


def test_lora_learns_leaves_the_base_as_it_was_and_runs_under_lm_evals_hf(own_task: Path, causal_model, tmp_path: Path):
    task, base = _task(own_task), causal_model("llama")
    pool, settings = hn.ModelPool(), _lora(base)
    lm = pool.load(lora.base_ref(settings))
    before = {k: v.clone() for k, v in lm.language_model.state_dict().items()}
    labels = _gold(task, 160)
    ref = lora.fit(task, task.train_docs[:160], labels, settings, tmp_path, pool=pool)
    after = lm.language_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    test_docs = list(task.task.eval_docs)
    tuned = label(pool.load(ref), task, test_docs, [str(i) for i in range(60)], hn.PromptStyle())
    assert _right(task, tuned) > 0.85
    stock = HFLM(str(base), peft=str(tmp_path / "adapter"), device="cpu", dtype="float32")
    same = label(stock, task, test_docs, [str(i) for i in range(60)], hn.PromptStyle())
    assert np.allclose(tuned.soft, same.soft, atol=1e-4)
    files = {p.suffix for p in (tmp_path / "adapter").iterdir()}
    assert ".safetensors" in files
    assert not files & {".bin", ".pt"}


def test_curves_hold_loss_and_held_back_accuracy_by_step(own_task: Path, causal_model, tmp_path: Path):
    task = _task(own_task)
    lora.fit(
        task, task.train_docs[:80], _gold(task, 80), _lora(causal_model("gpt2"), holdout=0.2), tmp_path, pool=hn.ModelPool()
    )
    curve = json.loads((tmp_path / "curves.json").read_text())
    losses, held = [p for p in curve if "loss" in p], [p for p in curve if "eval_accuracy" in p]
    assert [p["step"] for p in losses] == list(range(1, 13))
    assert len(held) >= 4
    assert losses[-1]["loss"] < losses[0]["loss"]


def _losses(folder: Path) -> list[float]:
    return [c["loss"] for c in json.loads((folder / "curves.json").read_text()) if "loss" in c]


def _fit(task: hn.HarnessTask, settings: Lora, n: int, out: Path, pool: hn.ModelPool | None = None) -> list[float]:
    out.mkdir()
    lora.fit(task, task.train_docs[:n], _gold(task, n), settings, out, pool=pool or hn.ModelPool())
    return _losses(out)


@pytest.mark.parametrize("objective", ["choices", "language_model"])
@pytest.mark.parametrize("chat", [False, True])
def test_packed_training_has_the_loss_curve_of_plain_training(
    own_task: Path, causal_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, chat: bool
):
    from w2s_tasks.packing import scoring

    system = "Tell whether the review is negative or positive, in one word." if chat else None
    settings = Lora(
        model=str(causal_model("llama")),
        r=8,
        lr=1e-3,
        batch_size=8,
        holdout=0.0,
        chat_template=chat,
        system_prompt=system,
        objective=objective,  # type: ignore[arg-type]
    )
    task, groups = _task(own_task), []
    original = scoring.make_plan
    monkeypatch.setattr(scoring, "make_plan", lambda *a, **k: groups.append(original(*a, **k)) or groups[-1])
    packed = _fit(task, settings, 160, tmp_path / "packed")
    assert all(plan.groups for plan in groups) or not chat, "with a shared prompt every step is packed"
    monkeypatch.setattr(scoring, "_may_pack", lambda model: False)
    plain = _fit(task, settings, 160, tmp_path / "plain")
    assert len(packed) == 20
    assert packed == pytest.approx(plain, abs=1e-3)
    untrained = _fit(task, settings.model_copy(update={"lr": 1e-12}), 160, tmp_path / "untrained")
    assert max(abs(a - b) for a, b in zip(plain, untrained, strict=True)) > 1e-2


def test_the_language_model_objective_is_the_loss_over_the_reply_and_its_end(own_task: Path, causal_model, tmp_path: Path):
    """The first step's loss against transformers' own, with the prompt masked out."""
    task, folder = _task(own_task), causal_model("llama")
    settings = Lora(model=str(folder), batch_size=12, holdout=0.0, lr=1e-9, objective="language_model", chat_template=True)
    (loss,) = _fit(task, settings, 12, tmp_path / "m")
    lm = hn.ModelPool().load(lora.base_ref(settings))
    ending = lm.tokenizer.encode("\n", add_special_tokens=False)  # what the tests' template writes after a message
    total = count = 0.0
    for doc in task.train_docs[:12]:
        prompt, reply_text = task.pairs(doc, lora.style_of(settings), lm)[task.gold(doc)]
        whole = lm.tok_encode(prompt + reply_text)
        same = zip(lm.tok_encode(prompt), whole, strict=False)
        context = list(itertools.takewhile(lambda pair: pair[0] == pair[1], same))  # a space of its own is given, not learnt
        reply = whole[len(context) :]
        tokens = torch.tensor([[*whole, *ending]])
        labels = tokens.clone()
        labels[0, : len(context)] = -100
        with torch.no_grad():
            mean = lm.language_model(input_ids=tokens, labels=labels).loss
        total, count = total + float(mean) * (len(reply) + len(ending)), count + len(reply) + len(ending)
    assert loss == pytest.approx(total / count, abs=1e-4)


def test_accumulated_gradients_give_the_loss_of_the_whole_batch(own_task: Path, causal_model, tmp_path: Path):
    task = _task(own_task)
    curves = []
    for name, steps in (("whole", 1), ("parts", 3)):
        settings = Lora(
            model=str(causal_model("llama")),
            r=4,
            lr=1e-2,
            batch_size=12,
            holdout=0,
            trainer_args={"gradient_accumulation_steps": steps},
        )
        out = tmp_path / name
        out.mkdir()
        # 44 rows: the last step is a partial one, where a mean of means would differ.
        lora.fit(task, task.train_docs[:44], _gold(task, 44), settings, out, pool=hn.ModelPool())
        curves.append([p["loss"] for p in json.loads((out / "curves.json").read_text())])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_a_step_that_is_run_in_parts_is_the_same_step(
    own_task: Path, causal_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
):
    """Fewer activations at once; where rows share a long prompt, cutting would run it again, so they stay together."""
    from w2s_tasks.packing import scoring

    system = "Tell whether the review is negative or positive, in one word. " * 4 if chat else None
    settings = Lora(
        model=str(causal_model("llama")), r=8, lr=1e-3, batch_size=12, holdout=0, chat_template=chat, system_prompt=system
    )
    original, parts, weights = language_model.packing.cut_rows, [], []
    monkeypatch.setattr(language_model.packing, "cut_rows", lambda *a: parts.append(original(*a)) or parts[-1])
    curves = []
    for size in (10**6, 24):
        monkeypatch.setattr(scoring, "part_tokens", lambda *_, size=size: size)
        parts.clear()
        curves.append(_fit(_task(own_task), settings, 44, tmp_path / str(size)))
        weights.append(load_file(tmp_path / str(size) / "adapter" / "adapter_model.safetensors"))
        assert [sorted(itertools.chain(*step)) for step in parts] == [list(range(n)) for n in (12, 12, 12, 8)]
        assert (max(map(len, parts)) > 1) == (size == 24 and not chat)
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name


def test_the_encoder_learns_and_its_checkpoint_knows_its_text_and_classes(
    own_task: Path, encoder_folder: Path, tmp_path: Path
):
    task = _task(own_task)
    settings = Classifier(model=str(encoder_folder), text="text", epochs=6, lr=3e-3, batch_size=16)
    ref = weak.fit(task, task.train_docs[:200], _gold(task, 200), settings, tmp_path, pool=hn.ModelPool())
    assert ref.model == "w2s-classifier"
    labels = label(hn.ModelPool().load(ref), task, list(task.task.eval_docs), [str(i) for i in range(60)], hn.PromptStyle())
    assert _right(task, labels) > 0.85
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["w2s"] == {"text": "text"}
    assert config["id2label"] == {"0": "negative", "1": "positive"}


class _Stop(Exception):
    pass


def test_out_of_memory_in_training_goes_on_with_gradient_checkpointing(
    own_task: Path, causal_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    task, settings = _task(own_task), Lora(model=str(causal_model("llama")), batch_size=8, holdout=0.0)
    plain = _fit(task, settings, 32, tmp_path / "plain")
    original = language_model.choice_logprobs

    def short(model: torch.nn.Module, *arguments: object) -> torch.Tensor:
        if not any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
            raise torch.OutOfMemoryError("no room")
        return original(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(language_model, "choice_logprobs", short)
    pool = hn.ModelPool()
    assert _fit(task, settings, 32, tmp_path / "short", pool) == pytest.approx(plain, abs=1e-4)
    assert "going on with gradient checkpointing" in caplog.text
    base = pool.load(lora.base_ref(settings)).language_model
    assert not any(getattr(m, "gradient_checkpointing", False) for m in base.modules())  # the next training keeps them again
    monkeypatch.setattr(
        language_model, "choice_logprobs", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room"))
    )
    with pytest.raises(UserError, match="gradient_accumulation_steps"):
        _fit(task, settings, 32, tmp_path / "never")


def test_length_sorted_parts_give_every_rows_logits(encoder_folder: Path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(encoder_folder).eval()
    lengths = torch.tensor([3, 9, 2, 9, 5, 7, 1])
    mask = (torch.arange(9)[None, :] < lengths[:, None]).long()
    columns = {"input_ids": torch.randint(5, 600, (7, 9)) * mask, "attention_mask": mask}
    seen: list[int] = []
    model.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["input_ids"].numel()), with_kwargs=True)
    with torch.no_grad():
        whole = model(**columns).logits
        parts = heads.logits_by_length(model, columns, rows_together=2)
    assert torch.allclose(parts, whole, atol=1e-5)
    assert sum(seen[1:]) == 2 * 9 + 2 * 7 + 2 * 3 + 1


@pytest.mark.parametrize("trainer", ["lora", "full", "probe", "classifier"])
def test_training_goes_on_after_a_kill_with_equal_weights(
    own_task: Path, causal_model, encoder_folder: Path, tmp_path: Path, trainer: str, monkeypatch: pytest.MonkeyPatch
):
    task = _task(own_task)
    fit, strong = TRAINERS[trainer].fit, {"model": str(causal_model("llama")), "epochs": 3, "lr": 1e-3, "batch_size": 16}
    settings = {
        "lora": lambda: _lora(causal_model("llama")),
        "full": lambda: Full(**strong),
        "probe": lambda: Probe(**strong),
        "classifier": lambda: Classifier(**strong | {"model": str(encoder_folder), "text": "text"}),
    }[trainer]()
    result = {"lora": "adapter", "probe": "head"}.get(trainer, "model")
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    args = (task, task.train_docs[:100], _gold(task, 100), settings)
    fit(*args, tmp_path / "whole", pool=hn.ModelPool(), seed=3)

    original = training.Bar.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 11:
            raise _Stop
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(training.Bar, "on_step_end", stop)
    with pytest.raises(_Stop):
        fit(*args, tmp_path / "cut", pool=hn.ModelPool(), seed=3)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path / "cut" / "checkpoints") is not None
    fit(*args, tmp_path / "cut", pool=hn.ModelPool(), seed=3)
    for name in ("model.safetensors", "adapter_model.safetensors", "head.safetensors"):
        if (tmp_path / "whole" / result / name).exists():
            assert (tmp_path / "whole" / result / name).read_bytes() == (tmp_path / "cut" / result / name).read_bytes()
    assert (tmp_path / "whole" / "curves.json").read_text() == (tmp_path / "cut" / "curves.json").read_text()
    assert folder_hash(tmp_path / "whole" / result) == folder_hash(tmp_path / "cut" / result)


def test_a_truncated_checkpoint_is_passed_over(own_task: Path, causal_model, tmp_path: Path):
    task = _task(own_task)
    lora.fit(task, task.train_docs[:64], _gold(task, 64), _lora(causal_model("llama")), tmp_path, pool=hn.ModelPool())
    folder = tmp_path / "checkpoints"
    newest = newest_checkpoint(folder)
    assert newest is not None
    optimizer = newest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    older = newest_checkpoint(folder)
    assert older is not None
    assert int(older.name.split("-")[1]) < int(newest.name.split("-")[1])


def test_mistakes_in_settings_are_named(own_task: Path, causal_model, tmp_path: Path):
    task, labels = _task(own_task), None
    labels = _gold(task, 40)
    docs, pool = task.train_docs[:40], hn.ModelPool()
    with pytest.raises(ValueError, match=r"'reprot_to' would be ignored\. Did you mean 'report_to'"):
        _lora(causal_model("llama"), trainer_args={"reprot_to": "none"})
    odd = _lora(causal_model("llama"), trainer_args={"optim": "no_such_optimizer"})
    with pytest.raises(UserError, match=r"trainer_args: transformers refuses .*no_such_optimizer"):
        lora.fit(task, docs, labels, odd, tmp_path, pool=pool)
    with pytest.raises(UserError, match="target_modules"):
        lora.fit(task, docs, labels, _lora(causal_model("llama"), target_modules=["nothing"]), tmp_path, pool=pool)
    with pytest.raises(UserError, match="no column 'txt'"):
        weak.fit(task, docs, labels, Classifier(model=str(causal_model("llama")), text="txt"), tmp_path, pool=pool)


def test_a_ranking_task_says_that_it_is_not_trainable():
    with pytest.raises(UserError, match="scored as a ranking"):
        hn.Harness().task("w2s_ethics_probe_utilitarianism").check_trainable()


def test_a_missing_task_suggests_the_right_one():
    harness = hn.Harness()
    harness.manager._can_widen = False  # lm_eval's own 14,683 names take half a minute to read
    with pytest.raises(UserError, match="Did you mean 'w2s_sst2'"):
        harness.task("w2s_sst")
    with pytest.raises(UserError, match="is a group"):
        harness.task("w2s_ethics_probe")


def test_a_row_counts_in_the_loss_by_its_weight(own_task: Path, causal_model, tmp_path: Path):
    """The loss of a step is linear in the weights; weights of 1 are none."""
    task, labels, pool = _task(own_task), _gold(_task(own_task), 16), hn.ModelPool()
    settings = Lora(model=str(causal_model("llama")), r=4, lr=1e-2, batch_size=16, holdout=0)
    half = np.arange(16) % 2
    first = []
    for name, weight in (("none", None), ("one", np.ones(16)), ("even", 1.0 - half), ("odd", half.astype(float))):
        (tmp_path / name).mkdir()
        weighed = labels if weight is None else labels.with_weight(weight)
        lora.fit(task, task.train_docs[:16], weighed, settings, tmp_path / name, pool=pool)
        first.append(_losses(tmp_path / name)[0])
    none, one, even, odd = first
    assert one == none
    assert even + odd == pytest.approx(none, rel=1e-6)
    assert 0 < even < none
