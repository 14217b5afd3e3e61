"""A task whose answers are generated: one-digit sums, worked out and scored by their result; and a tiny model for it.

The task is a user's own, YAML and functions beside it; the model knows the form of a solution, and guesses the sum.
"""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

SIGNS = " \n:+=#." + string.digits + string.ascii_letters
SCORING = '''
"""Scores and reads sums."""
import re

from w2s_tasks.scoring.replies import reads


def said(reply):
    found = re.findall(r"#### *(\\d+)", reply)
    return found[-1] if found else None


@reads(said, lambda one, other: int(one) == int(other))
def score(doc, results):
    answer = said(results[0])
    found = -1 if answer is None else int(int(answer) == doc["a"] + doc["b"])
    item = (1, found, found, -1)
    return {key: item for name in ("acc", "unparsed") for key in (name, f"{name}_stderr")}
'''
TASK = """\
task: own_sums
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}
output_type: generate_until
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
doc_to_text: "Sum: {{{{a}}}} + {{{{b}}}}\\nSolution:"
doc_to_target: "{{{{a}}}} + {{{{b}}}} = {{{{a + b}}}}\\n#### {{{{a + b}}}}"
process_results: !function sums_scoring.score
generation_kwargs: {{until: ["Sum:"], max_gen_toks: 24, do_sample: false}}
metric_list:
  - {{metric: acc, aggregation: !function w2s_tasks.scoring.generated.acc, higher_is_better: true}}
  - {{metric: acc_stderr, aggregation: !function w2s_tasks.scoring.generated.acc_stderr, higher_is_better: false}}
  - {{metric: unparsed, aggregation: !function w2s_tasks.scoring.generated.unparsed, higher_is_better: false}}
  - {{metric: unparsed_stderr, aggregation: !function w2s_tasks.scoring.generated.unparsed_stderr, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
EXPERIMENT = """\
task: own_sums
include_path: [{tasks}]
labels: generate
generate: {{samples: 3, temperature: 0.7}}
split: {{by: row, limit: {{weak: 24, transfer: 20}}}}
weak: {{model: {model}, trainer: lora, objective: language_model, r: 4, lr: 1e-2, epochs: 2, batch_size: 8}}
strong: {{model: {model}, trainer: lora, objective: language_model, r: 4, lr: 1e-2, epochs: 2, batch_size: 8}}
methods: [xent]
arms: [zero_shot, student, ceiling]
"""


def write_sums(folder: Path) -> Path:
    """Write the task `own_sums` into a new folder: 70 training and 30 test rows."""
    folder.mkdir()
    pairs = [(a, b) for a in range(10) for b in range(10)]
    random.Random(0).shuffle(pairs)
    for name, part in (("train", pairs[:70]), ("test", pairs[70:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in part), "utf-8")
    (folder / "sums_scoring.py").write_text(SCORING, "utf-8")
    (folder / "own_sums.yaml").write_text(TASK.format(folder=folder), "utf-8")
    return folder


def write_experiment(folder: Path) -> Path:
    """Write an experiment with its task and its model into a new folder; its YAML file."""
    folder.mkdir()
    path, model = folder / "sums.yaml", guesser(folder / "model")
    path.write_text(EXPERIMENT.format(tasks=write_sums(folder / "own_tasks"), model=model), "utf-8")
    return path


def _guess(rng: random.Random) -> str:
    a, b = rng.randrange(10), rng.randrange(10)
    c = rng.choice([a + b, a, b])
    return f"Sum: {a} + {b}\nSolution: {a} + {b} = {c}\n#### {c}"


def guesser(folder: Path) -> Path:
    """Write a tiny llama, a token a sign, that writes solutions of the right form with results that are often wrong."""
    import torch
    import transformers as tf
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {sign: i for i, sign in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *SIGNS])}
    signs = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    signs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    signs.decoder = decoders.Fuse()
    special: dict[str, Any] = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=signs, model_max_length=512, **special)
    tokenizer.chat_template = (
        "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(vocabulary), "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**size, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=5e-3), random.Random(1)
    for _ in range(120):
        rows = []
        for _ in range(8):
            shots = [_guess(rng) for _ in range(rng.choice([1, 1, 2, 3, 5]))]
            rows.append([*tokenizer.encode("\n\n".join(shots)), 2])
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
