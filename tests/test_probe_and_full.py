"""Hidden states, the step that keeps them, and the trainers `probe` and `full`, beside plain transformers and torch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from bad_input import one_clear_error
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from test_choices_by_row import OWN, ragged
from test_own_rows import use, write

from trainers.config.reading import load
from trainers.fit import full, probe
from trainers.fit.full import Full
from trainers.fit.lora import base_ref
from trainers.fit.openai import OpenAI
from trainers.fit.probe import Probe
from trainers.fit.trainer import TRAINERS
from trainers.flow.alone import finetune_model
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.harness import evaluate as hn
from trainers.harness.pool import ModelPool
from trainers.labels.ask import OverChoices
from trainers.labels.gold import gold_labels
from trainers.report.report import write_report
from trainers.steps.embeddings import Embeddings, read_embeddings
from trainers.steps.fit import Fit
from trainers.steps.teachers import Repetition, embeddings_of
from trainers.training.loop import Bar
from w2s_tasks.models import pooled
from w2s_tasks.models.classifier import W2SClassifier
from w2s_tasks.models.hidden import hidden_states
from w2s_tasks.models.ref import ModelRef

Models = Callable[[str], Path]
STYLE = hn.PromptStyle()


@pytest.fixture
def task(own_task: Path) -> hn.HarnessTask:
    return use(own_task)


def gold(task: hn.HarnessTask, n: int) -> Any:
    docs = task.train_docs[:n]
    return gold_labels(task.train_ids[:n], [task.gold(doc) for doc in docs], task.sizes(docs))


# ---- hidden states --------------------------------------------------------------------------------------------------------

TEXTS = [
    "a good film",
    "<pad>",
    "a <pad> bad film <pad>",
    "",
    "word " * 60,
    "the end",
    "a rather bad and long film , it was",
]
"""Among them the padding token itself, and nothing at all."""


def plain(folder: Path, rows: list[list[int]], layer: int, pooling: str) -> np.ndarray:
    """Row by row, unpadded, by transformers alone."""
    model = tf.AutoModel.from_pretrained(folder).eval()
    found = []
    for row in rows:
        with torch.no_grad():
            states = model(torch.tensor([row]), output_hidden_states=True).hidden_states[layer][0]
        found.append((states[-1] if pooling == "last" else states.mean(0)).numpy())
    return np.stack(found)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(("layer", "pooling"), [(-1, "last"), (1, "last"), (0, "mean"), (-1, "mean")])
def test_hidden_states_are_those_of_each_text_alone(causal_model: Models, architecture: str, layer: int, pooling: Any):
    lm: Any = ModelPool().load(ModelRef("w2s-hf", {"pretrained": str(causal_model(architecture))}))
    before = lm.language_model.config.to_dict()
    found = hidden_states(lm, TEXTS, layer=layer, pooling=pooling)
    tokens = [row or [lm.prefix_token_id] for row in lm.tokenize(TEXTS)]
    expected = plain(causal_model(architecture), tokens, layer, pooling)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert lm.language_model.config.to_dict() == before
    shuffled = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    again = hidden_states(lm, [TEXTS[i] for i in shuffled], layer=layer, pooling=pooling)
    assert np.allclose(again, found[shuffled], atol=1e-5 * np.abs(found).max())


def test_an_encoder_gives_the_mean_over_its_tokens(encoder_folder: Path):
    lm = W2SClassifier(str(encoder_folder), untrained_head=2)
    rows = [row["input_ids"] for row in lm.reader.encode([(text,) for text in TEXTS])]
    assert np.allclose(hidden_states(lm, TEXTS), plain(encoder_folder, rows, -1, "mean"), atol=1e-5)
    assert hidden_states(lm, []).shape == (0, 32)


def test_states_behind_an_adapter_are_those_of_the_tuned_model(task: hn.HarnessTask, causal_model: Models, tmp_path: Path):
    settings = TRAINERS["lora"].settings(model=str(causal_model("llama")), r=4, lr=1e-2, batch_size=16)  # type: ignore[call-arg]
    pool = ModelPool()
    ref = TRAINERS["lora"].fit(task, task.train_docs[:48], gold(task, 48), settings, tmp_path, pool=pool)
    tuned = hidden_states(pool.load(ref), TEXTS)
    untuned = hidden_states(pool.load(base_ref(settings)), TEXTS)  # type: ignore[arg-type]
    assert np.abs(tuned - untuned).max() > 1e-3
    assert np.allclose(untuned, hidden_states(ModelPool().load(base_ref(settings)), TEXTS))  # type: ignore[arg-type]


def test_what_has_no_hidden_states_or_no_such_layer_says_so(causal_model: Models):
    lm = ModelPool().load(ModelRef("w2s-hf", {"pretrained": str(causal_model("llama"))}))
    one_clear_error(lambda: hidden_states(lm, TEXTS, layer=3), "no layer 3: 0 is its embeddings, 1 to 2 are behind")
    one_clear_error(lambda: hidden_states(lm, TEXTS, layer=-4), "no layer -4")
    other: Any = type("Dummy", (), {})()
    one_clear_error(lambda: hidden_states(other, TEXTS), "Dummy gives no hidden states")


# ---- the step -------------------------------------------------------------------------------------------------------------


SMALL = ("split.limit={weak: 48, transfer: 32}", "evaluate.limit=20")
FEW = (*SMALL, "arms=[zero_shot]", "weak.epochs=1")


def with_embeddings(flow: Run) -> tuple[Embeddings, Embeddings, Embeddings]:
    """The layout with three more steps, as a method adds them: the untuned strong model's twice, the trained weak one's."""
    layout = flow.layout
    fit = layout.steps["fit/weak, seed 0"]
    labels = layout.weak_labels[0]
    assert isinstance(fit, Fit)
    repetition = Repetition(labels.split, fit, labels, layout.config.strong, OverChoices(), layout._add)
    strong = embeddings_of(repetition, repetition.strong)
    assert embeddings_of(repetition, repetition.strong) is strong
    lower = embeddings_of(repetition, repetition.strong, layer=1, pooling="mean")
    return strong, lower, embeddings_of(repetition, fit.settings, fit)


def test_embeddings_of_the_transfer_rows_are_kept_by_row_id(experiment_file: Path, tmp_path: Path, causal_model: Models):
    flow = open_run(load(str(experiment_file), list(FEW))[0], tmp_path / "runs")
    strong, lower, weak = with_embeddings(flow)
    assert len({strong.name, lower.name, weak.name}) == 3
    flow.build(Progress(quiet=True))
    task = flow.layout.task
    ids, states = read_embeddings(strong, flow)
    labels = flow.layout.weak_labels[0]
    assert len(ids) == strong.rows() == labels.rows() == len(states) == 32
    lm: Any = ModelPool().load(base_ref(strong.settings))  # type: ignore[arg-type]
    prompts = task.prompts(task.docs_of(ids), STYLE)
    assert np.allclose(states, hidden_states(lm, prompts), atol=1e-5)
    assert np.allclose(read_embeddings(lower, flow)[1], hidden_states(lm, prompts, layer=1, pooling="mean"), atol=1e-5)
    assert read_embeddings(weak, flow)[1].shape == (32, 32)

    again = open_run(load(str(experiment_file), [*FEW, "strong.lr=0.5"])[0], tmp_path / "runs")
    steps = with_embeddings(again)
    again.build(Progress(quiet=True))
    assert all(again.stages[step.name].reused for step in steps), "a learning rate is no part of an untuned model"
    assert again.key(steps[0]) != again.key(steps[1])


def test_a_model_behind_a_service_has_no_embeddings(experiment_file: Path, tmp_path: Path):
    flow = open_run(load(str(experiment_file), ["arms=[zero_shot]"])[0], tmp_path)
    labels = flow.layout.weak_labels[0]
    repetition: Any = Repetition(labels.split, labels.fit, labels, OpenAI(model="gpt"), OverChoices(), flow.layout._add)  # type: ignore[arg-type]
    one_clear_error(lambda: embeddings_of(repetition, repetition.strong), "hidden states of gpt are not here")


# ---- the probe ------------------------------------------------------------------------------------------------------------


def by_hand(folder: Path, head: Path, texts: list[str]) -> torch.Tensor:
    """A probe's logits by transformers and torch alone, text by text."""
    model, tokenizer = tf.AutoModel.from_pretrained(folder).eval(), tf.AutoTokenizer.from_pretrained(folder)
    weights = load_file(head / "head.safetensors")
    with torch.no_grad():
        states = torch.stack([model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts])
    return ((states - weights["mean"]) / weights["scale"]) @ weights["linear.weight"].T + weights["linear.bias"]


def test_a_probes_answers_under_lm_eval_are_those_of_a_plain_computation(
    task: hn.HarnessTask, causal_model: Models, tmp_path: Path
):
    base = causal_model("llama")
    settings = Probe(model=str(base), lr=0.01, epochs=20, batch_size=16)
    ref = probe.fit(task, task.train_docs[:160], gold(task, 160), settings, tmp_path, pool=ModelPool())
    hn.evaluate(hn.Harness(), ModelPool(), ref, {task: None}, tmp_path / "evaluated", style=STYLE)
    (file,) = (tmp_path / "evaluated").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    found = torch.tensor([[float(answer[0][0]) for answer in sample["resps"]] for sample in samples])
    logits = by_hand(base, tmp_path / "head", task.prompts(list(task.task.eval_docs), STYLE))
    assert torch.allclose(found, logits.log_softmax(-1), atol=1e-4)
    right = (found.argmax(-1) == torch.tensor([task.gold(doc) for doc in task.task.eval_docs])).float().mean()
    assert right > 0.6
    assert {p.name for p in (tmp_path / "head").iterdir()} == {"head.json", "head.safetensors"}
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert ModelRef.load(_saved(ref, moved)).args["head"] == str(moved / "head")


def _saved(ref: ModelRef, folder: Path) -> Path:
    ModelRef(ref.model, {**ref.args, "head": str(folder / "head")}).save(folder)
    assert json.loads((folder / "model.json").read_text())["args"]["head"] == "./head"
    return folder


def test_states_are_computed_once_and_outlive_a_kill(
    task: hn.HarnessTask, causal_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Stop(Exception):
        pass

    settings = Probe(model=str(causal_model("llama")), lr=0.01, epochs=4, batch_size=16)

    def train() -> ModelRef:
        return probe.fit(task, task.train_docs[:64], gold(task, 64), settings, tmp_path, pool=ModelPool())

    with monkeypatch.context() as patch:
        patch.setattr(Bar, "on_step_end", lambda *_, **__: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            train()
    kept = tmp_path / "checkpoints" / "features.safetensors"
    assert load_file(kept)["states"].shape == (64, 48)
    with monkeypatch.context() as patch:
        patch.setattr(pooled, "pooled_states", lambda *_: pytest.fail("computed again"))
        train()
    kept.write_bytes(kept.read_bytes()[:100])
    weights = load_file(tmp_path / "head" / "head.safetensors")
    for checkpoint in (tmp_path / "checkpoints").glob("checkpoint-*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    train()
    again = load_file(tmp_path / "head" / "head.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_head_of_another_model_or_a_damaged_one_is_refused(encoder_folder: Path, causal_model: Models, tmp_path: Path):
    told, head = pooled.Probe(-1, "last", ("no", "yes")), pooled.Head(48, 2)
    told.save(head, tmp_path / "head")
    base = str(causal_model("llama"))
    one_clear_error(lambda: W2SClassifier(str(encoder_folder), head=str(tmp_path / "head")), "of 48, .* gives 32")
    one_clear_error(lambda: W2SClassifier(base, head=str(tmp_path / "none")), "none does not exist")
    one_clear_error(lambda: W2SClassifier(base, head=base), "holds no head.json: not a probe's folder")
    one_clear_error(
        lambda: W2SClassifier(base, head=str(tmp_path / "head"), peft="x"), "leave peft= and untrained_head= out"
    )
    damages: dict[str, Callable[[Path], object]] = {
        "no whole safetensors": lambda f: (f / "head.safetensors").write_bytes(b"\0" * 40),
        "not JSON": lambda f: (f / "head.json").write_text("{"),
        "unexpected keyword": lambda f: (f / "head.json").write_text('{"layer": -1, "pooling": "last", "x": 1}'),
        "pooling 'max'": lambda f: (f / "head.json").write_text('{"layer": -1, "pooling": "max", "classes": ["a", "b"]}'),
        "2 outputs for 3 classes": lambda f: (f / "head.json").write_text(
            '{"layer": -1, "pooling": "last", "classes": ["a", "b", "c"]}'
        ),
        "no layer 9": lambda f: (f / "head.json").write_text('{"layer": 9, "pooling": "last", "classes": ["a", "b"]}'),
        "state_dict for Head": lambda f: save_file({"linear.weight": torch.zeros(2, 48)}, f / "head.safetensors"),
    }
    for number, (message, damage) in enumerate(damages.items()):
        folder = tmp_path / str(number)
        told.save(head, folder)
        damage(folder)
        one_clear_error(lambda folder=folder: W2SClassifier(base, head=str(folder)), message)


# ---- the full trainer -----------------------------------------------------------------------------------------------------


def test_full_training_moves_every_weight_and_leaves_the_pools_base_as_it_was(
    task: hn.HarnessTask, causal_model: Models, tmp_path: Path
):
    pool, settings = ModelPool(), Full(model=str(causal_model("gpt2")), lr=1e-3, batch_size=16, epochs=3)
    lm: Any = pool.load(base_ref(settings))
    before = {name: weight.clone() for name, weight in lm.language_model.state_dict().items()}
    ref = full.fit(task, task.train_docs[:160], gold(task, 160), settings, tmp_path, pool=pool)
    lm = pool.load(base_ref(settings))
    assert all(torch.equal(before[name], weight) for name, weight in lm.language_model.state_dict().items())
    trained = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(not torch.equal(before[name], weight) for name, weight in trained.named_parameters())
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert ref == ModelRef("w2s-hf", {"pretrained": str(tmp_path / "model")})
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == tf.AutoTokenizer.from_pretrained(settings.model).chat_template
    assert not list((tmp_path / "model").glob("*.bin"))
    requests = task.requests(list(task.task.eval_docs), STYLE)
    ours = [answer for answer, _ in pool.load(ref).loglikelihood(requests, disable_tqdm=True)]  # type: ignore[attr-defined]
    stock = HFLM(str(tmp_path / "model"), device="cpu", dtype="float32")
    assert np.allclose(ours, [answer for answer, _ in stock.loglikelihood(requests, disable_tqdm=True)], atol=1e-4)
    labels = [task.gold(doc) for doc in task.task.eval_docs]
    assert np.mean(np.array(ours).reshape(-1, 2).argmax(1) == labels) > 0.6


def test_one_step_of_full_training_is_adamw_on_the_mean_loss(task: hn.HarnessTask, causal_model: Models, tmp_path: Path):
    """By torch alone: the log-likelihoods of both choices, row by row, and one step of AdamW."""
    folder, n = causal_model("llama"), 8
    once = {"epochs": 1, "batch_size": n, "warmup": 0, "schedule": "constant", "holdout": 0}
    settings = Full(model=str(folder), lr=1e-4, trainer_args={"max_grad_norm": 1e9}, **once)  # type: ignore[arg-type]
    full.fit(task, task.train_docs[:n], gold(task, n), settings, tmp_path, pool=ModelPool())
    model, lm = tf.AutoModelForCausalLM.from_pretrained(folder), ModelPool().load(base_ref(settings))
    loss = torch.tensor(0.0)
    for doc in task.train_docs[:n]:
        own = []
        for context, continuation in lm.encode(task.pairs(doc, STYLE)):  # type: ignore[attr-defined]
            logprobs = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
            places = range(len(context) - 1, len(context) + len(continuation) - 1)
            own.append(sum(logprobs[place, token] for place, token in zip(places, continuation, strict=True)))
        loss = loss - torch.stack(own).log_softmax(0)[task.gold(doc)] / n  # type: ignore[arg-type]
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0).step()
    trained = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    start = tf.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    moves = [(trained[name] - start[name], weight.detach() - start[name]) for name, weight in model.named_parameters()]
    same = torch.cat([((ours - theirs).abs() < 2e-5).flatten() for ours, theirs in moves]).float().mean()
    assert same > 0.99, "Adam's first step is the sign of the gradient: rounding turns some that are nearly 0"


def test_no_more_checkpoints_of_a_full_model_are_kept_than_asked_for(
    task: hn.HarnessTask, causal_model: Models, tmp_path: Path
):
    args = {"save_steps": 1, "save_total_limit": 1}
    settings = Full(model=str(causal_model("llama")), batch_size=16, holdout=0.2, trainer_args=args)
    full.fit(task, task.train_docs[:80], gold(task, 80), settings, tmp_path, pool=ModelPool())
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names == ["checkpoint-4"]


def test_quantised_weights_are_refused_before_anything_is_trained(causal_model: Models, tmp_path: Path):
    settings = Full(model=str(causal_model("llama")), model_args={"load_in_4bit": True})
    one_clear_error(lambda: full.check(settings), r"quantised weights \(model_args.load_in_4bit\) .* trainer: lora")


# ---- both, in experiments -------------------------------------------------------------------------------------------------

PROBED = "{{model: {model}, trainer: probe, batch_size: 16, lr: 0.01}}"
WHOLE = "{{model: {model}, trainer: full, batch_size: 16, lr: 1e-3}}"
SAFE = "safety={tasks: [w2s_ethics_probe_justice], limit: 4}"


def run(file: Path, runs: Path, *settings: str) -> tuple[Run, dict[str, Any]]:
    flow = open_run(load(str(file), list(settings))[0], runs)
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


def test_an_experiment_of_probes_beside_the_untuned_language_model(
    experiment_file: Path, encoder_folder: Path, causal_model: Models, tmp_path: Path
):
    strong = "strong=" + PROBED.format(model=causal_model("llama"))
    weak = f"weak={{model: {encoder_folder}, trainer: probe, text: text, epochs: 8}}"
    arms = "arms=[zero_shot, zero_shot_calibrated, few_shot(1), student, self_labels]"
    flow, report = run(experiment_file, tmp_path / "runs", strong, weak, arms, "methods=[filter+logconf]", *SMALL)
    modes = {arm["arm"]: arm["mode"] for arm in report["arms"]}
    assert modes["student"] == modes["weak"] == "classifier"
    assert modes["zero_shot"] == modes["few_shot(1)"] == modes["zero_shot_calibrated"] == "loglikelihood"
    told = json.loads((flow.stages["fit/weak, seed 0"].path / "head" / "head.json").read_text())
    assert told == {"layer": -1, "pooling": "mean", "classes": ["negative", "positive"]}
    assert not (flow.stages["fit/weak, seed 0"].path / "checkpoints").exists()
    card = next((flow.folder / "model_cards").glob("student*.md")).read_text(encoding="utf-8")
    assert "Linear probe on" in card
    assert "--model w2s-classifier --model_args" in card
    assert str(flow.stages[f"fit/{_student(flow)}"].path / "head") in card
    code = flow.recipe(flow.layout.steps["evaluate/zero_shot"])["code"]
    plain = open_run(load(str(experiment_file), [])[0], tmp_path / "plain")
    assert plain.recipe(plain.layout.steps["evaluate/zero_shot"])["code"] == code, "the untuned model is asked as ever"


def _student(flow: Run) -> str:
    return next(name for name in flow.stages if name.startswith("fit/student")).removeprefix("fit/")


def test_an_experiment_of_whole_models_with_safety(experiment_file: Path, causal_model: Models, tmp_path: Path):
    whole = WHOLE.format(model=causal_model("llama"))
    settings = [f"strong={whole}", f"weak={whole}", SAFE, "arms=[zero_shot, student]", *SMALL]
    flow, report = run(experiment_file, tmp_path / "runs", *settings)
    assert {arm["mode"] for arm in report["arms"]} == {"loglikelihood"}
    assert {entry["arm"] for entry in report["safety"]} == {"weak", "zero_shot", "student"}
    student = flow.stages["fit/student, seed 0"].path / "model"
    card = next((flow.folder / "model_cards").glob("student*.md")).read_text(encoding="utf-8")
    assert "Fine-tuned from" in card
    assert "lm_eval run --model hf" in card
    assert str(student) in card


@pytest.mark.parametrize("trainer", ["probe", "full"])
def test_rows_with_choices_of_their_own(tmp_path: Path, causal_model: Models, trainer: str):
    task = use(write(tmp_path / "own_tasks", ragged(120, 1), ragged(30, 2), **OWN))
    base, out = str(causal_model("llama")), tmp_path / "out"
    out.mkdir()
    settings: Any = Probe(model=base, lr=0.05, epochs=15) if trainer == "probe" else Full(model=base, lr=2e-3, epochs=2)
    ref = TRAINERS[trainer].fit(task, task.train_docs, gold(task, 120), settings, out, pool=ModelPool())
    docs = list(task.task.eval_docs)
    answers = ModelPool().load(ref).loglikelihood(task.requests(docs, STYLE))
    rows = np.split(np.array([answer for answer, _ in answers]), np.cumsum(task.sizes(docs))[:-1])
    assert np.mean([row.argmax() == doc["label"] for row, doc in zip(rows, docs, strict=True)]) > 0.5  # chance is .34
    if trainer == "probe":
        texts = [[f"{task.prompts([doc], STYLE)[0]}\n{choice}" for choice in doc["choices"]] for doc in docs]
        numbers = [by_hand(Path(base), out / "head", own).squeeze(-1) for own in texts]
        assert all(np.allclose(row, own.log_softmax(0), atol=1e-4) for row, own in zip(rows, numbers, strict=True))


REFUSED = {
    "a kept part of a full training": (WHOLE, "evaluate.checkpoints=[0.5]", "it needs strong.trainer: lora"),
    "a full model on a server": (WHOLE, "evaluate.engine=vllm", "it needs strong.trainer: lora"),
    "a probe on a server": (PROBED, "evaluate.engine=vllm", "it needs strong.trainer: lora"),
    "a probe's kept part": (PROBED, "evaluate.checkpoints=[0.5]", "it needs strong.trainer: lora"),
    "a probe's safety": (PROBED, SAFE, "answers the training task alone"),
    "a probe's layers in another precision": (PROBED, "strong.trainer_args={bf16: true}", "'bf16' is for a model that is"),
    "a head of the user's": (PROBED, "strong.model_args={head: x}", "'head' is set by the run itself"),
    "solutions of a probe": (PROBED, "labels=generate", "trainer: full or lora with objective: language_model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_trainer_cannot_do_is_refused(experiment_file: Path, case: str):
    section, setting, message = REFUSED[case]
    one_clear_error(lambda: load(str(experiment_file), ["strong=" + section.format(model="m"), setting]), message)


def test_a_probe_that_cannot_be_is_refused_before_others_are_trained(causal_model: Models):
    base = str(causal_model("llama"))
    one_clear_error(lambda: probe.check(Probe(model=base, layer=7)), "no layer 7: .* 1 to 2")
    one_clear_error(lambda: probe.check(Probe(model=base, model_args={"dtype": "bfloat16"})), "dtype")


@pytest.mark.parametrize("trainer", ["full", "probe"])
def test_finetune_says_how_the_model_is_evaluated(own_task: Path, causal_model: Models, tmp_path: Path, trainer: str):
    out, base = tmp_path / "m", str(causal_model("llama"))
    said = finetune_model("own_reviews", base, trainer, None, out, 16, ["epochs=1"], 0, [str(own_task)])
    model, folder = {"full": ("lm_eval run --model hf", "model"), "probe": ("w2s eval --model w2s-classifier", "head")}[
        trainer
    ]
    assert said.startswith(model)
    assert str(out / folder) in said
