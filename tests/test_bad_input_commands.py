"""The real `w2s` command on bad input: exit code 2, one clear error, no traceback, no key in it, nothing written half."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from bad_input import one_clear_error

from w2s_tasks import register
from w2s_tasks.plugin import eval_arguments

CANARY = "sk-canary-51ac7be09d3f4482"
PROBE = "w2s_ethics_probe_justice"
BASE = ["--model", "w2s-classifier", "--tasks", PROBE, "--limit", "2"]


def w2s(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainers.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | env)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)

# ---- eval YAML and flags: the entry that `w2s eval` calls -----------------------------------------------------------------

EVAL: dict[str, tuple[object, str]] = {
    "empty": ("", "a mapping of keys.*found nothing"),
    "a list": ("- a\n", "found list"),
    "not YAML": ("model: [", ":1|not YAML"),
    "a NUL": ("model: a\0", "not YAML"),
    "invalid utf-8": (b"model: \xff", ":1: not readable as UTF-8"),
    "a key twice": ("model: hf\nmodel: w2s-hf\n", ":2: the key 'model' stands twice"),
    "a bomb": (BOMB, "more than 100,000"),
    "unknown key": ({"modle": "hf"}, "unknown key 'modle'. Did you mean 'model'"),
    "unknown flag": ({"num_fewshots": 1}, "Did you mean 'num_fewshot'"),
    "no tasks": ({"model": "w2s-hf", "model_args": {"pretrained": "x"}}, "no tasks; name some"),
    "tasks is a number": ({"tasks": 3}, "tasks: a name or a list of names"),
    "tasks of numbers": ({"tasks": [3]}, "tasks: a name or a list of names"),
    "unknown model": ({"tasks": [PROBE], "model": "w2s-hff"}, "Did you mean 'w2s-hf'"),
    "model is a list": ({"tasks": [PROBE], "model": ["hf"]}, "model: text is expected"),
    "model_args is a list": ({"tasks": [PROBE], "model_args": ["a=b"]}, "model_args: a mapping or k=v"),
    "model_args is a word": ({"tasks": [PROBE], "model": "w2s-hf", "model_args": "gpt2"}, "model_args: write k=v"),
    "unknown argument": (
        {"tasks": [PROBE], "model": "w2s-classifier", "model_args": {"pretrained": "x", "txt": "y"}},
        "no argument 'txt'. Did you mean 'text'",
    ),
    "argument is missing": ({"tasks": [PROBE], "model": "w2s-recorded"}, "needs the argument path"),
    "num_fewshot is a word": ({"tasks": [PROBE], "num_fewshot": "four"}, "num_fewshot: a whole number"),
    "num_fewshot is negative": ({"tasks": [PROBE], "num_fewshot": -1}, "num_fewshot: a whole number"),
    "limit is a word": ({"tasks": [PROBE], "limit": "all"}, "limit: a number above 0"),
    "limit is NaN": ("tasks: [a]\nlimit: .nan\n", "limit: a number above 0"),
    "limit is 0": ({"tasks": [PROBE], "limit": 0}, "limit: a number above 0"),
    "log_samples is a word": ({"tasks": [PROBE], "log_samples": "maybe"}, "log_samples: true or false"),
    "samples without a place": (
        {"tasks": [PROBE], "model": "w2s-hf", "model_args": {"pretrained": "x"}, "log_samples": True},
        "need --output_path",
    ),
    "a key": ({"tasks": [PROBE], "model_args": {"pretrained": "x", "api_key": CANARY}}, "'api_key' looks like a secret"),
    "a key as text": ({"tasks": [PROBE], "model_args": f"pretrained=x,api_key={CANARY}"}, "looks like a secret"),
    "a key by its look": ({"tasks": [PROBE], "model_args": {"header": CANARY}}, "'header' looks like a secret"),
    "a nested key": ({"tasks": [PROBE], "model_args": {"extra": {"h": {"Authorization": CANARY}}}}, "looks like a secret"),
    "a hub token": ({"tasks": [PROBE], "hf_hub_log_args": {"token": CANARY}}, "hf_hub_log_args: 'token' looks"),
    "a wandb key": ({"tasks": [PROBE], "wandb_args": {"api_key": CANARY}}, "wandb_args: 'api_key' looks like a secret"),
    "a key in metadata": ({"tasks": [PROBE], "metadata": {"secret": CANARY}}, "metadata: 'secret' looks like a secret"),
    "a key in gen_kwargs": ({"tasks": [PROBE], "gen_kwargs": {"api_key": CANARY}}, "gen_kwargs: 'api_key'"),
    "remote code": ({"tasks": [PROBE], "trust_remote_code": True}, "trust_remote_code is off"),
    "remote code in model_args": ({"tasks": [PROBE], "model_args": {"trust_remote_code": True}}, "trust_remote_code is off"),
    "remote code as text": ({"tasks": [PROBE], "model_args": "pretrained=x,trust_remote_code=True"}, "is off"),
    "remote code in metadata": ({"tasks": [PROBE], "metadata": {"trust_remote_code": True}}, "trust_remote_code is off"),
}  # fmt: skip


@pytest.mark.parametrize("case", EVAL)
def test_a_bad_eval_config(case: str, tmp_path: Path):
    data, message = EVAL[case]
    register()
    path = tmp_path / "eval.yaml"
    content = data if isinstance(data, str | bytes) else yaml.safe_dump(data)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = one_clear_error(
        lambda: eval_arguments.checked(["--config", str(path)]), message, names="eval.yaml", untouched=tmp_path
    )
    assert CANARY not in text


FLAGS: dict[str, tuple[list[str], str]] = {
    "a key": ([*BASE, "--model_args", f"pretrained=x,api_key={CANARY}"], "'api_key' looks like a secret"),
    "a key in a second word": (
        [*BASE, "--model_args", "pretrained=x", f"api_key={CANARY}"],
        "'api_key' looks like a secret",
    ),
    "a key by =": ([*BASE, f"--model_args=pretrained=x,token={CANARY}"], "'token' looks like a secret"),
    "a key by -a": ([*BASE, "-a", f"pretrained=x,password={CANARY}"], "'password' looks like a secret"),
    "a key by a short flag": ([*BASE, "--model_arg", f"pretrained=x,password={CANARY}"], "'password' looks like a secret"),
    "a key in JSON": ([*BASE, "-a", json.dumps({"pretrained": "x", "extra": {"api-key": CANARY}})], "looks like a secret"),
    "a key in gen_kwargs": ([*BASE, "-a", "pretrained=x", "--gen_kwargs", f"api_key={CANARY}"], "looks like a secret"),
    "a key in hub arguments": ([*BASE, "-a", "pretrained=x", "--hf_hub_log_args", f"token={CANARY}"], "looks like a secret"),
    "a key in wandb arguments": ([*BASE, "-a", "pretrained=x", "--wandb_args", f"api_key={CANARY}"], "looks like a secret"),
    "remote code": ([*BASE, "-a", "pretrained=x", "--trust_remote_code"], "trust_remote_code is off"),
    "remote code as argument": ([*BASE, "-a", "pretrained=x,trust_remote_code=true"], "trust_remote_code is off"),
    "no config": (["--config", "nothing.yaml"], "nothing.yaml: not readable"),
    "unknown model": (["--model", "w2s-clasifier", "--tasks", PROBE], "Did you mean 'w2s-classifier'"),
    "unknown argument": ([*BASE, "-a", "pretrained=x,txt=y"], "Did you mean 'text'"),
    "no tasks": (["--model", "w2s-hf", "-a", "pretrained=x"], "no tasks"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flags_of_eval(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments, message = FLAGS[case]
    monkeypatch.chdir(tmp_path)
    register()
    text = one_clear_error(lambda: eval_arguments.checked(arguments), message, untouched=tmp_path)
    assert CANARY not in text


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "harness_configs" / "eval").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_eval_config_passes(path: Path):
    register()
    assert eval_arguments.checked(["--config", str(path)]) == ["--config", str(path)]


def test_the_cache_of_lm_eval_is_each_models_own(causal_model, tmp_path: Path):
    """lm_eval's cache knows requests, not models: a second model would get the first one's answers."""
    register()

    def cache(*arguments: str) -> str:
        out = eval_arguments.checked(["--tasks", PROBE, "--use_cache", str(tmp_path / "c"), *arguments])
        assert out[-2] == "--use_cache"
        return out[-1]

    llama, gpt2 = (f"pretrained={causal_model(a)}" for a in ("llama", "gpt2"))
    found = [
        cache("--model", "w2s-hf", "-a", llama),
        cache("--model", "w2s-hf", "-a", gpt2),
        cache("--model", "hf", "-a", llama),
        cache("--model", "w2s-chat", "-a", "model=m,base_url=http://localhost:1/v1"),
        cache("--model", "w2s-chat", "-a", "model=n,base_url=http://localhost:1/v1"),
    ]
    assert len(set(found)) == len(found)
    assert cache("--model", "w2s-hf", "-a", llama) == found[0]


# ---- the command itself ------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    (folder / "bomb.yaml").write_text("a: &a [*a]\n")
    (folder / "nul.yaml").write_bytes(b"task: a\0\n")
    (folder / "utf.yaml").write_bytes(b"task: \xff\n")
    (folder / "eval.yaml").write_text(yaml.safe_dump({"tasks": [PROBE], "model_args": {"api_key": CANARY}}))
    (folder / "remote.yaml").write_text(yaml.safe_dump({"tasks": [PROBE], "model": "hf", "trust_remote_code": True}))
    pq.write_table(pa.table({"row_id": ["x-0"], "soft": [[0.9, 0.1]], "hard": [0], "gold": [0]}), folder / "l.parquet")
    (folder / "cut.parquet").write_bytes(b"PAR1")
    (folder / "study" / "m").mkdir(parents=True)
    (folder / "study" / "m" / "justice_1.json").write_text('[{"test_prompt": 1}]')
    (folder / "report.json").write_text('{"schema": 2}')
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


COMMANDS: list[tuple[list[str], str]] = [
    (["run", "bomb.yaml"], "bomb.yaml:1: an anchor that contains itself"),
    (["run", "nul.yaml"], "nul.yaml:1: not YAML"),
    (["plan", "utf.yaml"], "utf.yaml:1: not readable as UTF-8"),
    (["run", "quickstart", "--set", f"strong.model_args.x={CANARY}"], "looks like a secret"),
    (["run", "quickstart", "--set", f"weak.trainer_args.hub_token={CANARY}"], "looks like a secret"),
    (["run", "quickstart", "--set", "name=.."], "dots alone"),
    (["sweep", "quickstart", "--grid", f"strong.model_args.api_key={CANARY},b"], "looks like a secret"),
    (["eval", "--config", "eval.yaml"], "'api_key' looks like a secret"),
    (["eval", "--config", "remote.yaml"], "trust_remote_code is off"),
    (["eval", *BASE, "-a", "pretrained=x", f"api_key={CANARY}"], "looks like a secret"),
    (
        ["label", "--task", PROBE, "--model_args", f"pretrained=x,api_key={CANARY}", "--out", "o.parquet"],
        "looks like a secret",
    ),
    (["label", "--task", PROBE, "--model_args", "pretrained=x,trust_remote_code=True", "--out", "o.parquet"], "is off"),
    (
        ["finetune", "--task", PROBE, "--model", "m", "--out", "o", "--set", f"model_args.token={CANARY}"],
        "looks like a secret",
    ),
    (["finetune", "--task", PROBE, "--model", "m", "--out", "o", "--labels", "l.parquet"], "is not in the training split"),
    (["finetune", "--task", PROBE, "--model", "m", "--out", "o", "--labels", "cut.parquet"], "not a readable label set"),
    (["rescore", "study", "--parser", "lenient"], "justice_1.json, row 0: 'test_prompt' must be a string"),
    (["report", "report.json"], "report.json: this report is cut or altered"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=lambda x: " ".join(x)[:48] if isinstance(x, list) else "")
def test_the_command_ends_with_one_clear_error(arguments: list[str], message: str, tmp_path: Path):
    before = files(tmp_path)
    done = w2s(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert CANARY not in done.stderr + done.stdout
    assert {str(p): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()} == before
