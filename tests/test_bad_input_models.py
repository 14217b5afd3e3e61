"""Model folders and adapters that are broken, pickled, or made for something else: one clear error, nothing run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bad_input import one_clear_error
from safetensors.torch import load_file, save_file

from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.harness import evaluate as hn
from trainers.training import loop
from w2s_tasks.errors import UserError
from w2s_tasks.models.classifier import W2SClassifier
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.quantised import take_configuration
from w2s_tasks.models.ref import ModelRef, check_folder, identity_of, resolve
from w2s_tasks.models.texts import document_text


class _Bomb:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self.mark),)


def no_config(m: Path) -> None:
    (m / "config.json").unlink()


def config_of(text: str) -> Callable[[Path], None]:
    return lambda m: (m / "config.json").write_text(text) and None


def changed(**values: object) -> Callable[[Path], None]:
    def change(m: Path) -> None:
        config = json.loads((m / "config.json").read_text())
        (m / "config.json").write_text(json.dumps(config | values))

    return change


def no_weights(m: Path) -> None:
    (m / "model.safetensors").unlink()


def pickled(m: Path) -> None:
    no_weights(m)
    (m / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(m.parent / "pwned")))


def pickled_under_our_name(m: Path) -> None:
    (m / "model.safetensors").write_bytes(pickle.dumps(_Bomb(m.parent / "pwned")))


def cut(m: Path) -> None:
    file = m / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(m: Path) -> None:
    file = m / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])


def empty_weights(m: Path) -> None:
    (m / "model.safetensors").write_bytes(b"")


def huge_header(m: Path) -> None:
    (m / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def broken_link(m: Path) -> None:
    no_weights(m)
    (m / "model.safetensors").symlink_to(m / "gone")


def no_tokenizer(m: Path) -> None:
    for file in m.glob("token*"):
        file.unlink()


def broken_tokenizer(m: Path) -> None:
    (m / "tokenizer.json").write_text("{")


def own_code(m: Path) -> None:
    changed(
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        model_type="evil",
        architectures=["Evil"],
    )(m)
    (m / "evil.py").write_text(f"import os\nos.mkdir({str(m.parent / 'pwned')!r})\n")


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (no_config, r"holds no config\.json"),
    "empty config": (config_of(""), r"config\.json: not JSON"),
    "cut config": (config_of('{"model_type": "lla'), r"config\.json: not JSON.*Copy the model again"),
    "config is a list": (config_of("[]"), "a JSON object is expected, found list"),
    "config with a NUL": (config_of('{"a": "\0"}'), "not JSON"),
    "config of no model type": (config_of("{}"), "could not load"),
    "config of an unknown type": (changed(model_type="llamma"), "could not load"),
    "config of another size": (changed(hidden_size=64), "could not load"),
    "config with text for a number": (changed(num_hidden_layers="two"), "could not load"),
    "no weights": (no_weights, r"holds no \*\.safetensors weights"),
    "pickled weights": (pickled, "only as pickles .*save_pretrained"),
    "a pickle named safetensors": (pickled_under_our_name, "no whole safetensors file"),
    "cut weights": (cut, "no whole safetensors file .*copy or save the model again"),
    "cut header": (cut_header, "no whole safetensors file"),
    "empty weights": (empty_weights, "no whole safetensors file"),
    "a header of 4 EB": (huge_header, "no whole safetensors file"),
    "a broken link": (broken_link, "no whole safetensors file|holds no"),
    "no tokenizer": (no_tokenizer, "could not load|holds no tokenizer"),
    "broken tokenizer": (broken_tokenizer, "could not load"),
    "code of its own": (own_code, "code of its own, and trust_remote_code is off|could not load"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_model_folder(case: str, tmp_path: Path, causal_model: Callable[[str], Path]):
    damage, message = FOLDERS[case]
    folder = tmp_path / "model"
    shutil.copytree(causal_model("llama"), folder)
    damage(folder)
    one_clear_error(lambda: W2SHF(str(folder), device="cpu"), message, names=str(folder), untouched=tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("case", ["pickled weights", "cut weights", "cut config", "code of its own", "no tokenizer"])
def test_a_bad_classifier_folder(case: str, tmp_path: Path, encoder_folder: Path):
    damage, message = FOLDERS[case]
    folder = tmp_path / "model"
    shutil.copytree(encoder_folder, folder)
    damage(folder)
    one_clear_error(lambda: W2SClassifier(str(folder), untrained_head=2), message, names=str(folder), untouched=tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_names_that_are_no_models(tmp_path: Path):
    one_clear_error(lambda: resolve(str(tmp_path / "none")), "does not exist", names="none")
    one_clear_error(lambda: resolve("../../../etc"), "holds no config|does not exist", names="etc")
    one_clear_error(lambda: resolve("pypi:../../x"), "no package asset")
    one_clear_error(lambda: resolve("pypi:smollm2-135m"), "Did you mean 'smollm2-135m-instruct'")
    one_clear_error(lambda: check_folder(tmp_path, "config.json"), "not a model folder", names=str(tmp_path))


def test_remote_code_cannot_be_turned_on(causal_model: Callable[[str], Path]):
    for value in (True, "True", "true", 1, "1", "yes"):
        with pytest.raises(UserError, match="trust_remote_code is off"):
            W2SHF(str(causal_model("llama")), device="cpu", trust_remote_code=value)
    with pytest.raises(UserError, match="trust_remote_code is off"):
        hn.ModelPool().load(ModelRef("w2s-hf", {"pretrained": str(causal_model("llama")), "trust_remote_code": True}))


def test_an_unknown_argument_is_one_clear_error(causal_model: Callable[[str], Path]):
    one_clear_error(lambda: W2SHF(str(causal_model("llama")), device="cpu", devise_map="x"), "could not load.*devise_map")
    one_clear_error(lambda: hn.ModelPool().load(ModelRef("w2s-classifier", {"pretraind": "x"})), "Did you mean 'pretrained'")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('mkdir ' ~ text) }}",
        "{{ lipsum.__globals__['os'].mkdir(text) }}",
        "{{ text.format.__self__.__class__.__base__ }}",
        "{{ nothing }}",
        "{{ text",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_that_came_with_a_checkpoint_runs_no_code(template: str, encoder_folder: Path, tmp_path: Path):
    """A classifier's config.json tells what it reads of a document, and whoever published it wrote that."""
    folder = tmp_path / "m"
    shutil.copytree(encoder_folder, folder)
    changed(w2s={"text": template}, architectures=["BertForSequenceClassification"])(folder)
    lm = W2SClassifier(str(folder), untrained_head=2)
    mark = tmp_path / "pwned"
    message = "can't be filled in.*The documents have: text|no column .* in this task's documents. Has: text"
    one_clear_error(lambda: document_text(lm.text, {"text": str(mark)}, "prompt"), message)
    assert not mark.exists()


def test_a_template_of_columns_is_filled_in(encoder_folder: Path):
    assert document_text("{{a|upper}} {{b|regex_replace('x', 'y')}}", {"a": "q", "b": "xx"}, "") == ("Q yy",)


# ---- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(causal_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """An adapter of the tiny llama, with weights that are not zero."""
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    torch.manual_seed(5)
    model = lora.with_adapter(lm.language_model, Lora(model="x", r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def adapter_weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def without_some(folder: Path) -> None:
    tensors = load_file(adapter_weights(folder))
    save_file({k: v.contiguous() for k, v in list(tensors.items())[4:]}, adapter_weights(folder))


def renamed_some(folder: Path) -> None:
    tensors = load_file(adapter_weights(folder))
    save_file({k.replace("layers.1", "layers.9"): v.contiguous() for k, v in tensors.items()}, adapter_weights(folder))


def pickled_adapter(folder: Path) -> None:
    adapter_weights(folder).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb(folder.parent / "pwned")))


def adapter_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | values))

    return change


ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda a: (a / "adapter_config.json").unlink(), r"holds no adapter_config\.json: not a PEFT adapter"),
    "broken config": (lambda a: (a / "adapter_config.json").write_text("{"), r"adapter_config\.json: not JSON"),
    "an unknown kind": (adapter_config(peft_type="LORRA"), "LORRA' is not taken"),
    "another rank": (adapter_config(r=8), "could not load.*size mismatch|Error"),
    "other layers": (adapter_config(target_modules=["c_attn"]), "could not load.*c_attn|target_modules"),
    "fewer layers": (adapter_config(target_modules=["q_proj"]), "does not fit the base"),
    "a pickle": (pickled_adapter, "only as pickles"),
    "cut": (lambda a: adapter_weights(a).write_bytes(adapter_weights(a).read_bytes()[:-50]), "no whole safetensors file"),
    "tensors are missing": (without_some, "does not fit the base"),
    "tensors of other layers": (renamed_some, "does not fit the base"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_bad_adapter_is_refused_by_evaluation_and_by_the_pool(
    case: str, adapter: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    damage, message = ADAPTERS[case]
    damage(adapter)
    base = str(causal_model("llama"))
    one_clear_error(lambda: W2SHF(base, peft=str(adapter), device="cpu"), message, names="adapter")
    pool = hn.ModelPool()
    one_clear_error(
        lambda: pool.load(ModelRef("w2s-hf", {"pretrained": base, "peft": str(adapter)})), message, names="adapter"
    )
    assert not (tmp_path / "pwned").exists()
    # The base is loaded anew after that: nothing of the adapter stays on it.
    weights = [name for name, _ in pool.load(ModelRef("w2s-hf", {"pretrained": base})).language_model.named_parameters()]
    assert not [name for name in weights if "lora" in name]


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gpt_neox"])
def test_an_adapter_of_another_base_is_refused(architecture: str, adapter: Path, causal_model: Callable[[str], Path]):
    base = causal_model(architecture)
    if architecture == "qwen2":  # the same layers, of other sizes
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

        base = adapter.parent / "wide"
        config = LlamaConfig(
            vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
        AutoTokenizer.from_pretrained(causal_model("llama")).save_pretrained(base)
    one_clear_error(
        lambda: W2SHF(str(base), peft=str(adapter), device="cpu"), "could not load|does not fit", names="adapter"
    )


def test_an_adapter_in_place_of_a_model_and_the_other_way_round(adapter: Path, causal_model: Callable[[str], Path]):
    one_clear_error(lambda: W2SHF(str(adapter), device="cpu"), "give its base as pretrained= and this as peft=")
    base = str(causal_model("llama"))
    one_clear_error(lambda: W2SHF(base, peft=base, device="cpu"), "not a PEFT adapter folder")


# ---- identity: two models never share what they answered ------------------------------------------------------------------


def flip(file: Path) -> None:
    """Change one weight, keeping the file's size and its times."""
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_same_name_with_other_weights_is_another_model(causal_model: Callable[[str], Path], tmp_path: Path):
    folder = tmp_path / "m"
    shutil.copytree(causal_model("llama"), folder)
    before = identity_of(str(folder))
    flip(folder / "model.safetensors")
    assert identity_of(str(folder)) != before


def test_weights_in_a_gguf_file_count(causal_model: Callable[[str], Path], tmp_path: Path):
    folder = tmp_path / "m"
    shutil.copytree(causal_model("llama"), folder)
    (folder / "m.gguf").write_bytes(b"GGUF1")
    before = identity_of(str(folder))
    (folder / "m.gguf").write_bytes(b"GGUF2")
    assert identity_of(str(folder)) != before


def test_an_adapter_edited_in_place_is_another_model_and_is_loaded_anew(adapter: Path, causal_model: Callable[[str], Path]):
    ref = ModelRef("w2s-hf", {"pretrained": str(causal_model("llama")), "peft": str(adapter)})
    pool = hn.ModelPool()

    def answer() -> float:
        from lm_eval.api.instance import Instance

        request = Instance("loglikelihood", {}, ("Review: good\nSentiment:", " positive"), 0, metadata=("t", 0, 1))
        return float(pool.load(ref).loglikelihood([request], disable_tqdm=True)[0][0])

    before = ref.identity(), answer()
    tensors = {k: v * 1.5 for k, v in load_file(adapter_weights(adapter)).items()}
    save_file(tensors, adapter_weights(adapter), metadata={"format": "pt"})
    after = ref.identity(), answer()
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_the_same_weights_under_other_arguments_or_endpoints_are_other_models(causal_model: Callable[[str], Path]):
    folder = str(causal_model("llama"))
    refs = [
        ModelRef("w2s-hf", {"pretrained": folder}),
        ModelRef("hf", {"pretrained": folder}),
        ModelRef("w2s-hf", {"pretrained": folder, "dtype": "bfloat16"}),
        ModelRef("w2s-chat", {"model": "m", "base_url": "http://localhost:1/v1"}),
        ModelRef("w2s-chat", {"model": "m", "base_url": "http://localhost:2/v1"}),
        ModelRef("w2s-chat", {"model": "n", "base_url": "http://localhost:1/v1"}),
    ]
    assert len({ref.identity() for ref in refs}) == len(refs)


def test_bits_that_cannot_be_had_are_one_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    one_clear_error(lambda: take_configuration({"load_in_4bit": True}), "pip install 'w2s-harness\\[bitsandbytes\\]'")
    one_clear_error(lambda: take_configuration({"bnb_4bit_quant_type": "nf4"}), "need load_in_4bit=True")
    monkeypatch.undo()
    plain = {"load_in_4bit": False, "revision": "main"}
    assert take_configuration(plain) is None
    assert plain == {"revision": "main"}


def test_a_launch_that_cuts_the_model_is_refused():
    """As far as that goes on a CPU, where accelerate ignores the setting."""

    def launch(**on: bool) -> Any:
        return SimpleNamespace(**{"is_fsdp_enabled": False, "is_deepspeed_enabled": False} | on)

    for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        one_clear_error(
            lambda name=name: loop._refuse_shards(launch(**{name: True})), "FSDP and DeepSpeed are not supported"
        )
    loop._refuse_shards(launch())
