"""Our models answer as lm_eval's own do, and as the checkpoint says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from w2s_tasks.errors import UserError
from w2s_tasks.models.classifier import W2SClassifier, class_order
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.ref import ModelRef, folder_hash, resolve
from w2s_tasks.models.texts import document_text

PAIRS = [
    ("Review: the film was lovely\nSentiment:", " positive"),
    ("Review: the film was lovely\nSentiment:", " negative"),
    ("Review: dull\nSentiment:", " very positive indeed"),
    ("Review: dull\nSentiment:", " very negative"),
    ("Rate it.\nRating:", " 1"),
    ("Rate it.\nRating:", " 10"),
    ("Rate it.\nRating: ", '"1"'),
    ("Rate it.\nRating:", ' "10"'),
    ("", "a story with a plot"),
    ("the scene " * 120, " was cold"),  # longer than the window: truncated from the left
]


def _requests(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "gemma3"])
def test_w2s_hf_equals_lm_evals_hf(causal_model: Callable[[str], Path], architecture: str):
    folder = str(causal_model(architecture))
    ours = W2SHF(folder, device="cpu", token_budget=96).loglikelihood(_requests(PAIRS), disable_tqdm=True)
    theirs = HFLM(folder, device="cpu", dtype="float32", batch_size=3).loglikelihood(_requests(PAIRS), disable_tqdm=True)
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4)
    assert [a[1] for a in ours] == [a[1] for a in theirs]


@pytest.mark.pypi
def test_w2s_hf_equals_lm_evals_hf_on_smollm2(smollm2: str):
    ours = W2SHF(smollm2, device="cpu").loglikelihood(_requests(PAIRS[:8]), disable_tqdm=True)
    theirs = HFLM(smollm2, device="cpu", dtype="float32").loglikelihood(_requests(PAIRS[:8]), disable_tqdm=True)
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4)
    assert [a[1] for a in ours] == [a[1] for a in theirs]


# ---- classifier -----------------------------------------------------------------------------------------------


@pytest.fixture
def classifier_folder(encoder_folder: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(encoder_folder, id2label={0: "POSITIVE", 1: "NEGATIVE"})
    model.save_pretrained(tmp_path / "clf")
    AutoTokenizer.from_pretrained(encoder_folder).save_pretrained(tmp_path / "clf")
    return tmp_path / "clf"


def _documents(texts: list[str], choices: list[str]) -> list[Instance]:
    return [
        Instance("loglikelihood", {"text": t}, (f"Prompt {t}", f" {c}"), k, metadata=("t", i, 1))
        for i, t in enumerate(texts)
        for k, c in enumerate(choices)
    ]


def test_classifier_answers_with_the_class_named_like_the_choice(classifier_folder: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["lovely film", "dull", "the plot was cold and the actor false"]
    lm = W2SClassifier(str(classifier_folder), text="text", device="cpu")
    answers = np.array([a[0] for a in lm.loglikelihood(_documents(texts, ["negative", "positive"]), disable_tqdm=True)])
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    with torch.no_grad():
        expected = torch.cat([model(**tokenizer(t, return_tensors="pt")).logits.log_softmax(-1) for t in texts])
    assert answers.reshape(3, 2) == pytest.approx(expected[:, [1, 0]].numpy(), abs=1e-5)


def test_classifier_runs_one_forward_pass_a_document(classifier_folder: Path):
    lm = W2SClassifier(str(classifier_folder), text="text", device="cpu", token_budget=1)
    seen: list[int] = []
    lm.model.register_forward_pre_hook(lambda m, a, kw: seen.append(len(kw["input_ids"])), with_kwargs=True)
    lm.loglikelihood(_documents(["a", "b", "c"], ["negative", "positive"]), disable_tqdm=True)
    assert sum(seen) == 3


def test_classes_and_choices_must_fit():
    names = {0: "LABEL_0", 1: "LABEL_1"}
    assert class_order(None, names, ["no", "yes"]) == [0, 1]
    assert class_order([1, 0], names, ["no", "yes"]) == [1, 0]
    assert class_order(["pos", "neg"], {0: "neg", 1: "pos"}, ["yes", "no"]) == [1, 0]
    with pytest.raises(UserError, match="3 classes"):
        class_order(None, {0: "a", 1: "b", 2: "c"}, ["no", "yes"])
    with pytest.raises(UserError, match="which class stands for which choice"):
        class_order(None, {0: "spam", 1: "ham"}, ["no", "yes"])
    with pytest.raises(UserError, match="each class once"):
        class_order([0, 0], names, ["no", "yes"])


def test_text_from_column_template_pair_or_prompt():
    doc = {"q": "is it?", "p": " yes it is "}
    assert document_text("q", doc, "P") == ("is it?",)
    assert document_text("{{q}} | {{p}}", doc, "P") == ("is it? |  yes it is ",)
    assert document_text(["q", "p"], doc, "P") == ("is it?", "yes it is")
    assert document_text(None, doc, "P") == ("P",)
    with pytest.raises(UserError, match="no column 'question'"):
        document_text("question", doc, "P")


def test_a_bare_encoder_and_a_language_model_are_refused_as_classifiers(encoder_folder: Path, classifier_folder: Path):
    with pytest.raises(UserError, match="no classification head"):
        W2SClassifier(str(encoder_folder), device="cpu")


def test_a_classifier_is_refused_as_language_model(tmp_path: Path, causal_model):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = causal_model("llama")
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "c")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "c")
    with pytest.raises(UserError, match="sequence classifier"):
        W2SHF(str(tmp_path / "c"), device="cpu")


# ---- references -----------------------------------------------------------------------------------------------


def test_identity_follows_content_not_path(causal_model, tmp_path: Path):
    import shutil

    source = causal_model("llama")
    shutil.copytree(source, tmp_path / "copy")
    first, second = (
        ModelRef("w2s-hf", {"pretrained": str(source)}),
        ModelRef("w2s-hf", {"pretrained": str(tmp_path / "copy")}),
    )
    assert first.identity() == second.identity()
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text().replace('"hidden_act"', '"hidden_act" '))
    assert first.identity() != second.identity()
    assert ModelRef("hf", first.args).identity() != first.identity()


def test_an_edited_weight_file_has_another_hash(causal_model, tmp_path: Path):
    import shutil

    shutil.copytree(causal_model("gpt2"), tmp_path / "m")
    before = folder_hash(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert folder_hash(tmp_path / "m") != before


def test_model_paths_in_a_stage_are_relative(tmp_path: Path):
    (tmp_path / "a").mkdir()
    ModelRef("w2s-hf", {"pretrained": "pypi:x", "peft": str(tmp_path / "a" / "adapter")}).save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "model.json").read_text())["args"]["peft"] == "./adapter"
    (tmp_path / "a").rename(tmp_path / "b")
    assert ModelRef.load(tmp_path / "b").args["peft"] == str(tmp_path / "b" / "adapter")


def test_unusable_models_are_refused_with_the_reason(tmp_path: Path, causal_model):
    import shutil

    with pytest.raises(UserError, match="does not exist"):
        resolve(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Did you mean 'smollm2-135m-instruct'"):
        resolve("pypi:smollm2-135m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve(str(tmp_path / "empty"))
    shutil.copytree(causal_model("llama"), tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(UserError, match="only as pickles"):
        resolve(str(tmp_path / "pickle"))
    with pytest.raises(UserError, match="trust_remote_code is off"):
        W2SHF(str(causal_model("llama")), device="cpu", trust_remote_code=True)
