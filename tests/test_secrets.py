"""A canary in every environment variable that holds a key: it is in no file and no output, on success and on failure."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.section import no_secrets
from w2s_tasks.keys import remote_code_in, secret_in

CANARY = "sk-canary-c03e8a5f7d214b96"
VARIABLES = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "MY_KEY")
FORMS = (CANARY, CANARY[::-1], base64.b64encode(CANARY.encode()).decode().rstrip("="), CANARY.encode().hex(), CANARY[3:])


def w2s(*arguments: str, cwd: Path) -> str:
    environment = os.environ | dict.fromkeys(VARIABLES, CANARY) | {"W2S_CACHE": str(cwd / "cache"), "OPENAI_LOG": "debug"}
    done = subprocess.run(
        [sys.executable, "-m", "trainers.cli", "--verbose", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )
    return f"{done.returncode} {done.stdout}\n{done.stderr}"


def test_a_key_in_the_environment_is_in_no_file_and_no_output(
    experiment_file: Path, own_task: Path, causal_model, tmp_path: Path
):
    home = tmp_path / "home"
    home.mkdir()
    model = f"pretrained={causal_model('llama')}"
    own = ["--include_path", str(own_task), "--tasks", "own_reviews", "--limit", "4"]
    few = ["--set", "arms=[zero_shot, student]", "--set", "evaluate.limit=10"]
    said = [
        w2s("run", str(experiment_file), "--runs-dir", "runs", *few, cwd=home),
        w2s("run", str(experiment_file), "--runs-dir", "bad", "--set", "strong.target_modules=[nothing]", *few, cwd=home),
        w2s("eval", "--model", "w2s-hf", "--model_args", model, *own, "--log_samples", "--output_path", "out", cwd=home),
        w2s("eval", "--model", "w2s-hf", "--model_args", "pretrained=./none", *own, cwd=home),
        w2s("eval", "--model", "w2s-chat", "-a", "model=m,base_url=http://127.0.0.1:9/v1,max_retries=0", *own, cwd=home),
        w2s("doctor", cwd=home),
    ]
    assert [text.split()[0] for text in said[:4]] == ["0", "2", "0", "2"]
    assert said[4].split()[0] != "0"
    files = [p for p in home.rglob("*") if p.is_file()]
    kinds = {p.name for p in files}
    assert {"report.html", "report.json", "config.yaml", "manifest.json", "student-seed0.md"} <= kinds
    assert any(name.startswith("results_") for name in kinds)
    for form in FORMS:
        assert not [text for text in said if form in text]
        assert not [p for p in files if form.encode() in p.read_bytes()]
        assert not [p for p in files if form in p.name]


@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": "x"},
        {"apikey": "x"},
        {"API-KEY": "x"},
        {"openai_api_key": "x"},
        {"token": "x"},
        {"hub_token": "x"},
        {"access_token": "x"},
        {"client_secret": "x"},
        {"password": 1234},
        {"passwd": "x"},
        {"aws_access_key": "x"},
        {"private_key": "x"},
        {"credentials": {"user": "x"}},
        {"headers": {"Authorization": "x"}},
        {"extra": [{"deep": {"token": "x"}}]},
        {"tokens": ["x"]},
        {"header": CANARY},
        {"anything": ["a", {"b": f"key {CANARY}"}]},
        {"x": "hf_abcdefghijklmnopqrst"},
        {"x": "Bearer abcdefghijkl"},
        {CANARY: "x"},
    ],
)
def test_what_looks_like_a_secret_is_found_and_not_repeated(arguments: dict[str, object]):
    found = secret_in(arguments)
    assert found
    assert CANARY not in found
    with pytest.raises(ValueError, match="looks like a secret") as caught:
        no_secrets(arguments)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"add_bos_token": True},
        {"bos_token": "<s>"},
        {"pad_token": "<pad>"},
        {"think_end_token": "</think>"},
        {"max_new_tokens": 10, "max_gen_toks": 4},
        {"token_budget": 100},
        {"api_key_env": "MY_KEY"},
        {"token": None},
        {"token": True},
        {"pretrained": "org/sk-model"},
        {"text": "the secret of the film"},
        {"tokenizer": "org/name", "skip_special_tokens": True},
        {"trust_remote_code": False},
    ],
)
def test_what_is_no_secret_passes(arguments: dict[str, object]):
    assert secret_in(arguments) is None
    assert not remote_code_in(arguments)
    assert no_secrets(arguments) == arguments
