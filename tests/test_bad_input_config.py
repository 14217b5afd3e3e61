"""Experiment files, `--set`, sweep grids and price tables that are wrong: one clear error with file, place and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import one_clear_error

from trainers.commands.sweep import lay_out, of_shard, parse_grid
from trainers.config import reading
from w2s_tasks.models import prices

GOOD = """\
task: w2s_sst2
split: {by: source, limit: {weak: 100, transfer: 50}}
weak: {model: "pypi:all-minilm-l6-v2", lr: 5e-5}
strong: {model: "pypi:smollm2-135m-instruct"}
"""
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MERGE_BOMB = "x0: &x0 {k: 1}\n" + "".join(f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 9)}]}}\n" for i in range(1, 9))


def good(old: str = "", new: str = "") -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


FILES: dict[str, tuple[bytes, str]] = {
    # not YAML, or not a mapping
    "empty": (b"", "mapping of keys.*quickstart.yaml"),
    "only spaces": (b"  \n\n", "mapping of keys"),
    "only a comment": (b"# nothing\n", "mapping of keys"),
    "a list": (b"- a\n- b\n", "mapping of keys"),
    "a word": (b"hello\n", "mapping of keys"),
    "a number": (b"12\n", "mapping of keys"),
    "null": (b"null\n", "mapping of keys"),
    "json list": (b"[]", "mapping of keys"),
    "open bracket": (b"task: [\n", ":2: not YAML"),
    "open quote": (b'task: "w2s\n', "not YAML"),
    "a tab as indent": (b"weak:\n\tmodel: x\n", ":2: not YAML"),
    "two documents": (GOOD.encode() + b"---\n" + GOOD.encode(), "not YAML: but found another document"),
    "a value with a colon": (b"task: a: b\n", ":1: not YAML"),
    "html": (b"<!doctype html><html></html>", "mapping of keys"),
    # bytes
    "invalid utf-8": (b"task: w2s\nname: \xff\xfe\n", ":2: not readable as UTF-8.*save it as UTF-8"),
    "utf-16": (GOOD.encode("utf-16"), "not readable as UTF-8"),
    "latin-1": ("task: caf\xe9\n".encode("latin-1"), ":1: not readable as UTF-8"),
    "a NUL byte": (b"task: w2s_sst2\nname: a\0b\n", ":2: not YAML: special characters"),
    "an escape byte": (b"task: \x1b[31m\n", ":1: not YAML: special characters"),
    "a pickle": (b"\x80\x04\x95\x0f\x00\x00\x00", "not readable as UTF-8"),
    "a zip": (b"PK\x03\x04\x14\x00\x00\x00", "not YAML: special characters"),
    "10 MB in a line": (b"task: " + b"x" * 10_000_000, "at most 2,000,000"),
    "1 MB in a value": (good("w2s_sst2", "x" * 1_000_000) + b"tsak: 1\n", "tsak: unknown key"),
    # anchors, tags, keys
    "alias bomb": (BOMB.encode(), r"more than 100,000 values.*aliases"),
    "alias bomb in a known key": (BOMB.encode() + b"task: *j\n", "more than 100,000 values"),
    "merge bomb": (MERGE_BOMB.encode(), "more than 100,000 values"),
    "an anchor in itself": (b"task: &a [*a]\n", ":1: an anchor that contains itself"),
    "a mapping in itself": (b"weak: &a {model: *a}\n", ":1: an anchor that contains itself"),
    "an unknown alias": (b"task: *nothing\n", "undefined alias"),
    "nested 10,000 deep": (b"task: " + b"[" * 10_000, "nested too deeply"),
    "a python object": (b"task: !!python/object/apply:os.system ['touch pwned']\n", "not YAML: could not determine"),
    "a python name": (b"task: !!python/name:os.system\n", "not YAML: could not determine"),
    "a local tag": (b"task: !function utils.x\n", "not YAML: could not determine"),
    "a key twice": (GOOD.encode() + b"task: other\n", ":5: the key 'task' stands twice"),
    "a nested key twice": (good("lr: 5e-5", "lr: 1, lr: 2"), ":3: the key 'lr' stands twice"),
    "a number as key": (GOOD.encode() + b"1: x\n", "1"),
    "a list as key": (GOOD.encode() + b"? [a]\n: x\n", "not YAML"),
    "a date that is none": (GOOD.encode() + b"name: 2026-02-30\n", "no date or number.*quotes"),
    # unknown keys
    "unknown key": (GOOD.encode() + b"tsak: x\n", ":5: tsak: unknown key. Did you mean 'task'"),
    "unknown nested key": (good("lr:", "lrr:"), ":3: weak.lrr: unknown key. Did you mean 'lr'"),
    "unknown key in limit": (good("transfer:", "transfr:"), ":2: split.limit.transfr: .*'transfer'"),
    "unknown key of strong": (good('instruct"', 'instruct", epoch: 1'), "strong.epoch: unknown key. Did you mean 'epochs'"),
    "openai's key in lora": (good('instruct"', 'instruct", n_epochs: 1'), "strong.n_epochs: unknown key"),
    "lora's key in openai": (good('instruct"', 'instruct", trainer: openai, lr: 1'), "strong.lr: unknown key"),
    "unknown safety key": (GOOD.encode() + b"safety: {task: [a]}\n", "safety.task: unknown key. Did you mean 'tasks'"),
    "unknown method setting": (GOOD.encode() + b"method_args: {logconf: {alfa: 1}}\n", "Did you mean 'alpha'"),
    "a seed of a member": (
        GOOD.encode() + b"method_args: {ensemble: {members: [{seed: [1]}]}}\n",
        "members: seed: a whole number",
    ),
    "a number without digits": (b"task: !!int ''\n", "no date or number"),
    "unknown evaluate key": (
        GOOD.encode() + b"evaluate: {limits: 3}\n",
        "evaluate.limits: unknown key. Did you mean 'limit'",
    ),
    "unknown arm": (GOOD.encode() + b"arms: [studnet]\n", "no arm 'studnet'. Did you mean 'student'"),
    "unknown method": (GOOD.encode() + b"methods: [xnet]\n", "Did you mean 'xent'"),
    "unknown operation": (GOOD.encode() + b"methods: [filtr+xent]\n", "Did you mean 'filter'"),
    "unknown trainer": (good('instruct"', 'instruct", trainer: lorra'), "Did you mean 'lora'"),
    "unknown schedule": (good("lr: 5e-5", "schedule: cosin"), "weak.schedule: .*cosine"),
    "unknown split": (good("by: source", "by: sauce"), "split.by: .*source"),
    # missing
    "no task": (good("task: w2s_sst2\n"), "task: this key is missing"),
    "no weak": (b"task: x\nstrong: {model: y}\n", "weak: this key is missing"),
    "no strong model": (b"task: x\nweak: {model: y}\nstrong: {}\n", "strong.model: this key is missing"),
    "weak is null": (b"task: x\nweak:\nstrong: {model: y}\n", "weak: .*valid dictionary"),
    # wrong types and ranges
    "task is a list": (good("w2s_sst2", "[a, b]"), ":1: task: .*valid string"),
    "task is a number": (good("w2s_sst2", "12"), ":1: task: .*valid string"),
    "task is a date": (good("w2s_sst2", "2026-01-01"), ":1: task: .*valid string"),
    "weak is a word": (b"task: x\nweak: bert\nstrong: {model: y}\n", ":2: weak: .*valid dictionary"),
    "strong is a word": (b"task: x\nweak: {model: y}\nstrong: bert\n", ":3: strong: "),
    "strong is a list": (b"task: x\nweak: {model: y}\nstrong: [bert]\n", ":3: strong: "),
    "lr is a word": (good("5e-5", "fast"), ":3: weak.lr: .*valid number.*'fast'"),
    "lr is negative": (good("5e-5", "-1"), "weak.lr: .*greater than 0"),
    "lr is 0": (good("5e-5", "0"), "weak.lr: .*greater than 0"),
    "lr is NaN": (good("5e-5", ".nan"), "weak.lr: "),
    "lr is infinite": (good("5e-5", ".inf"), "weak.lr: "),
    "lr is a list": (good("5e-5", "[1]"), "weak.lr: .*valid number"),
    "epochs infinite": (good("lr: 5e-5", "epochs: .inf"), "weak.epochs: "),
    "batch_size is a fraction": (good("lr: 5e-5", "batch_size: 1.5"), "weak.batch_size: .*valid integer"),
    "batch_size is 0": (good("lr: 5e-5", "batch_size: 0"), "weak.batch_size: .*greater"),
    "limit too small": (good("weak: 100", "weak: 1"), "split.limit.weak: .*greater than or equal to 8"),
    "limit is a word": (good("weak: 100", "weak: all"), "split.limit.weak: .*valid integer"),
    "weak share above 1": (good("by: source", "by: source, weak: 1.5"), "split.weak: .*less than 1"),
    "holdout too large": (good("lr: 5e-5", "holdout: 0.9"), "weak.holdout: .*less than 0.5"),
    "seeds is a number": (GOOD.encode() + b"seeds: 3\n", ":5: seeds: .*valid list"),
    "a seed is a word": (GOOD.encode() + b"seeds: [one]\n", "seeds.0: .*valid integer"),
    "a huge seed": (GOOD.encode() + b"seeds: [99999999999999999999]\n", "seeds.0: "),
    "a negative seed": (GOOD.encode() + b"seeds: [-1]\n", "seeds.0: "),
    "no seed": (GOOD.encode() + b"seeds: []\n", "seeds: .*at least 1"),
    "a seed twice": (GOOD.encode() + b"seeds: [1, 1]\n", "a seed occurs twice"),
    "an arm twice": (GOOD.encode() + b"arms: [student, student]\n", "a name occurs twice"),
    "arms is a word": (GOOD.encode() + b"arms: student\n", "arms: .*valid list"),
    "few_shot(K) as written": (GOOD.encode() + b"arms: [few_shot(K)]\n", "no arm"),
    "few_shot(0)": (GOOD.encode() + b"arms: [few_shot(0)]\n", "no arm"),
    "no safety task": (GOOD.encode() + b"safety: {tasks: []}\n", "safety.tasks: .*at least 1"),
    "safety limits of a word": (GOOD.encode() + b"safety: {tasks: [a], limits: {a: x}}\n", "safety.limits.a: .*integer"),
    "negative shots": (GOOD.encode() + b"evaluate: {num_fewshot: -1}\n", "evaluate.num_fewshot: .*greater"),
    "chat prompt without template": (
        good('instruct"', 'instruct", system_prompt: x'),
        "system_prompt needs chat_template",
    ),
    "include_path is a word": (GOOD.encode() + b"include_path: here\n", "include_path: .*valid list"),
    # path tricks
    "name goes up": (GOOD.encode() + b"name: ../up\n", "name: .*pattern"),
    "name is ..": (GOOD.encode() + b"name: ..\n", "name: .*dots alone"),
    "name is .": (GOOD.encode() + b"name: .\n", "name: .*dots alone"),
    "name is absolute": (GOOD.encode() + b"name: /etc/x\n", "name: .*pattern"),
    "name with a newline": (GOOD.encode() + b'name: "a\\n"\n', "name: .*pattern"),
    "name of 300 characters": (GOOD.encode() + b"name: " + b"n" * 300 + b"\n", "name: .*at most 200"),
    # settings that would be ignored
    "smoothing of labels": (
        good("lr: 5e-5", "trainer_args: {label_smoothing_factor: 0.1}"),
        "'label_smoothing_factor' would be",
    ),
    "a rate beside the rate": (good("lr: 5e-5", "trainer_args: {learning_rate: 1.0}"), "set 'lr' instead"),
    "a folder of the user's": (good("lr: 5e-5", "trainer_args: {output_dir: x}"), "'output_dir' would be ignored"),
    "half a step": (good("lr: 5e-5", "trainer_args: {gradient_accumulation_steps: 1.5}"), "whole number from 1 on"),
    "a truth value as steps": (good("lr: 5e-5", "trainer_args: {max_steps: true}"), "whole number from 1 on"),
    "LoRA's rank for a classifier": (good("lr: 5e-5", "r: 8"), r"weak\.r: unknown key\. It is for trainer: lora"),
    "LoRA that reads a column": (
        good("lr: 5e-5", "trainer: lora, text: sentence"),
        r"weak\.text: unknown key\. It is for trainer: classifier",
    ),
    # secrets and code
    "a key in weak": (good("lr: 5e-5", "model_args: {api_key: x}"), "'api_key' looks like a secret"),
    "a token in strong": (good('instruct"', 'instruct", model_args: {hub_token: x}'), "'hub_token' looks like a secret"),
    "a nested key": (
        good("lr: 5e-5", "model_args: {extra: {headers: {Authorization: x}}}"),
        "Authorization' looks like a secret",
    ),
    "a key by its look": (good("lr: 5e-5", "trainer_args: {run_name: sk-live-12345678}"), "looks like a secret"),
    "a hub token by its look": (good("lr: 5e-5", "model_args: {x: [hf_abcdefghijklmnopqrst]}"), "looks like a secret"),
    "a bearer": (good("lr: 5e-5", "model_args: {x: {y: 'Bearer abcdefghijkl'}}"), "looks like a secret"),
    "a key as a number": (good("lr: 5e-5", "model_args: {password: 12345678}"), "looks like a secret"),
    "trust_remote_code": (good("lr: 5e-5", "model_args: {trust_remote_code: true}"), "trust_remote_code is off"),
    "trust_remote_code as text": (good("lr: 5e-5", "model_args: {trust_remote_code: 'True'}"), "trust_remote_code is off"),
    "nested trust_remote_code": (
        good("lr: 5e-5", "model_args: {config: {trust_remote_code: 1}}"),
        "trust_remote_code is off",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_experiment_file(case: str, tmp_path: Path):
    data, message = FILES[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    text = one_clear_error(lambda: reading.load(str(path)), message, names="mine.yaml", untouched=tmp_path)
    assert "sk-live" not in text
    assert "hf_abc" not in text


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert reading.load(str(path))[0].task == "w2s_sst2"


def test_what_only_looks_like_a_secret_is_accepted(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(
        good("lr: 5e-5", "model_args: {add_bos_token: true, think_end_token: '</t>', max_new_tokens: 5, token: null}")
    )
    assert reading.load(str(path))[0].weak.model_args["max_new_tokens"] == 5


def test_files_that_are_no_files(tmp_path: Path):
    one_clear_error(lambda: reading.load(str(tmp_path)), "no config file", names=str(tmp_path))
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "gone.yaml")
    one_clear_error(lambda: reading.load(str(link)), "no config file", names="link.yaml")
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    one_clear_error(lambda: reading.load(str(loop)), "no config file", names="loop.yaml")
    dots = tmp_path / "...yaml"
    dots.write_text(GOOD)
    one_clear_error(lambda: reading.load(str(dots)), "put `name: ", names="...yaml")
    good_link = tmp_path / "good.yaml"
    (tmp_path / "target.yaml").write_text(GOOD)
    good_link.symlink_to(tmp_path / "target.yaml")
    assert reading.load(str(good_link))[0].name == "good"


SETS: dict[str, tuple[str, str]] = {
    "no value": ("strong.lr", "write key=value"),
    "no key": ("=1", "write key=value"),
    "through a word": ("task.x=1", "no section"),
    "through a list": ("arms.0=student", "arms"),
    "unknown": ("strong.lrr=1", "Did you mean 'lr'"),
    "unknown section": ("strng.lr=1", "Did you mean 'strong'"),
    "an empty part": ("strong..lr=1", "strong"),
    "not YAML": ("seeds=[", "not YAML"),
    "a NUL": ("name=a\0b", "not YAML"),
    "a bomb": (f"seeds={{{', '.join(BOMB.splitlines())}}}", "more than 100,000 values"),
    "itself": ("seeds=&a [*a]", "contains itself"),
    "a python tag": ("seeds=!!python/name:os.system", "not YAML"),
    "a secret": ("strong.model_args.api_key=x", "looks like a secret"),
    "a secret by its look": ("strong.model_args.x=sk-live-12345678", "looks like a secret"),
    "remote code": ("weak.model_args.trust_remote_code=true", "trust_remote_code is off"),
    "a path as name": ("name=../../x", "pattern"),
    "wrong type": ("seeds=zero", "valid list"),
    "wrong class": ("strong={trainer: openai, model: m, n_epochs: many}", "n_epochs: .*auto"),
}


@pytest.mark.parametrize("case", SETS)
def test_a_bad_assignment(case: str):
    assignment, message = SETS[case]
    text = one_clear_error(lambda: reading.parse(GOOD, "mine.yaml", [assignment]), message)
    assert "sk-live" not in text


GRIDS: dict[str, tuple[list[str], str]] = {
    "no value": (["seed"], "write key=a,b"),
    "no key": (["=1"], "write key=a,b"),
    "nothing after": (["seed="], "write key=a,b"),
    "not YAML": (["seed=["], "not YAML"),
    "out of its brackets": (["seed=1], [2"], "not YAML"),
    "a bomb": ([f"seed={{{', '.join(BOMB.splitlines())}}}"], "more than 100,000 values"),
    "itself": (["seed=&a [*a]"], "contains itself"),
    "a value twice": (["seed=1,1"], "a value occurs twice"),
    "a key twice": (["seed=1", "seed=2"], "given twice"),
    "short and long": (["seed=1", "seeds=[2]"], "set the same key"),
    "NaN": (["strong.lr=.nan"], "no plain number"),
    "a date": (["name=2026-01-01"], "no plain number"),
    "a secret": (["strong.model_args.x=sk-live-12345678"], "looks like a secret"),
    "a secret's name": (["strong.model_args.api_key=a,b"], "looks like a secret"),
    "unknown key": (["strong.lrr=1"], "Did you mean 'lr'"),
    "unknown method": (["method=xnet"], "Did you mean 'xent'"),
    "wrong type": (["seed=zero"], "valid integer"),
    "a path as name": (["name=../x"], "pattern"),
    "remote code": (["weak.model_args.trust_remote_code=true"], "trust_remote_code is off"),
    "none": ([], "needs at least one --grid"),
}


@pytest.mark.parametrize("case", GRIDS)
def test_a_bad_grid(case: str, tmp_path: Path):
    entries, message = GRIDS[case]
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    text = one_clear_error(lambda: lay_out(str(path), [], parse_grid(entries)), message, untouched=tmp_path)
    assert "sk-live" not in text


@pytest.mark.parametrize("shard", ["0/4", "5/4", "a/b", "1", "1/0", "-1/2", "1/2/3", ""])
def test_a_bad_shard(shard: str):
    one_clear_error(lambda: of_shard([], shard), "write i/n")


PRICES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "valid dictionary"),
    "a list": (b"- a\n", "valid dictionary"),
    "not YAML": (b"models: [", "not YAML"),
    "invalid utf-8": (b"models: \xff", ":1: not readable as UTF-8"),
    "a NUL": (b"as_of: 2026-01-01\0", "not YAML"),
    "a bomb": (BOMB.encode(), "more than 100,000 values"),
    "no date": (b"models: {m: {input: 1, output: 1}}\n", "as_of"),
    "a wrong date": (b"as_of: soon\nmodels: {}\n", "as_of"),
    "a date that is none": (b"as_of: 2026-02-30\nmodels: {}\n", "no date"),
    "unknown key": (b"as_of: 2026-01-01\nmodel: {}\n", "Did you mean 'models'"),
    "unknown price": (b"as_of: 2026-01-01\nmodels: {m: {input: 1, output: 1, inputs: 2}}\n", "Did you mean 'input'"),
    "no output": (b"as_of: 2026-01-01\nmodels: {m: {input: 1}}\n", "models.m.output"),
    "a negative price": (b"as_of: 2026-01-01\nmodels: {m: {input: -1, output: 1}}\n", "models.m.input"),
    "an infinite price": (b"as_of: 2026-01-01\nmodels: {m: {input: .inf, output: 1}}\n", "models.m.input"),
    "NaN": (b"as_of: 2026-01-01\nmodels: {m: {input: .nan, output: 1}}\n", "models.m.input"),
    "a word": (b"as_of: 2026-01-01\nmodels: {m: {input: cheap, output: 1}}\n", "models.m.input"),
    "a model twice": (b"as_of: 2026-01-01\nmodels: {m: {input: 1, output: 1}, m: {input: 2, output: 2}}\n", "stands twice"),
    "10 MB": (b"#" * 10_000_000, "at most 2,000,000"),
}


@pytest.mark.parametrize("case", PRICES)
def test_a_bad_price_table(case: str, tmp_path: Path):
    data, message = PRICES[case]
    path = tmp_path / "prices.yaml"
    path.write_bytes(data)
    one_clear_error(lambda: prices.table(path), message, names="prices.yaml")


def test_a_price_table_with_a_byte_order_mark_is_accepted(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_bytes(b"\xef\xbb\xbfas_of: 2026-01-01\r\nmodels: {m: {input: 1, output: 1}}\r\n")
    assert prices.table(path).tokens("m") is not None
    one_clear_error(lambda: prices.table(tmp_path / "none.yaml"), "not readable", names="none.yaml")
