"""Where rows come from: ``$W2S_DATA/<org>/<name>``, then the hub (or its cache), then a package on the index.

Each public function is a task's ``custom_dataset``: lm_eval calls it with the task's metadata and, from the command
line, with all model arguments, so all of them swallow unknown keywords. They return ``{split: datasets.Dataset}``.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import datasets

from w2s_tasks.errors import MissingDataError
from w2s_tasks.rows import assets
from w2s_tasks.rows.families import families, numbered

log = logging.getLogger(__name__)

Splits = dict[str, datasets.Dataset]

# Row counts of the published sets: a copy that differs is used, but never silently.
KNOWN_ROWS: dict[tuple[str, str | None], dict[str, int]] = {
    ("stanfordnlp/sst2", None): {"train": 67_349, "validation": 872},
    ("google/boolq", None): {"train": 9_427, "validation": 3_270},
    ("openai/gsm8k", "main"): {"train": 7_473, "test": 1_319},
    ("hendrycks/competition_math", None): {"train": 7_500, "test": 5_000},
    ("hendrycks/ethics", "justice"): {"train": 21_791, "validation": 2_704, "test": 2_052},
    ("hendrycks/ethics", "deontology"): {"train": 18_164, "validation": 3_596, "test": 3_536},
    ("hendrycks/ethics", "virtue"): {"train": 28_245, "validation": 4_975, "test": 4_780},
    ("hendrycks/ethics", "utilitarianism"): {"train": 13_737, "validation": 4_807, "test": 4_271},
    ("hendrycks/ethics", "commonsense"): {"train": 13_910, "validation": 3_885, "test": 3_964},
    ("Anthropic/hh-rlhf", "harmless-base"): {"train": 42_537, "test": 2_312},
    ("Anthropic/hh-rlhf", "helpful-base"): {"train": 43_835, "test": 2_354},
}


def digest(text: str) -> str:
    """Hex sha256 of a text: an order that depends on nothing else."""
    return hashlib.sha256(text.encode()).hexdigest()


def local_folder(path: str) -> Path | None:
    """The set's folder below ``$W2S_DATA``, or None where the variable is unset or the set is not there."""
    root = os.environ.get("W2S_DATA")
    folder = Path(root, path) if root else None
    return folder if folder and folder.is_dir() else None


@functools.cache
def _load(path: str, name: str | None, local: Path | None, data_dir: str | None = None) -> datasets.DatasetDict:
    datasets.disable_progress_bars()
    try:
        loaded = _load_from(path, name, local, data_dir)
    finally:
        datasets.enable_progress_bars()
    _warn_if_partial(path, name or data_dir, loaded)
    return loaded


def cache_of(folder: Path) -> str:
    """Where datasets keeps what it made of a folder as it is now.

    It tells folders with a README apart by their names and their files' names alone: of another folder of that name, or of a
    file that was changed, it would give the old rows.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "w2s" / digest(f"{folder.resolve()} {states}")[:16])


def _load_from(path: str, name: str | None, local: Path | None, data_dir: str | None) -> datasets.DatasetDict:
    if local is not None:
        return datasets.load_dataset(str(local), name, data_dir=data_dir, cache_dir=cache_of(local))
    try:
        return datasets.load_dataset(path, name, data_dir=data_dir)
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        # Published with a loading script, which datasets >= 4 refuses; the hub keeps a parquet copy beside it, with one
        # folder a config and no list of configs.
        return datasets.load_dataset(path, data_dir=name, revision="refs/convert/parquet")


def _warn_if_partial(path: str, name: str | None, loaded: datasets.DatasetDict) -> None:
    for split, rows in KNOWN_ROWS.get((path, name), {}).items():
        found = len(loaded[split]) if split in loaded else 0
        if found != rows:
            label = f"{path}{f' ({name})' if name else ''} {split}"
            log.warning("%s: %d rows here, %d in the published set: this copy is partial or changed", label, found, rows)


def load(path: str, name: str | None = None, data_dir: str | None = None) -> datasets.DatasetDict:
    """Load ``path`` (hub id) and config ``name`` from ``$W2S_DATA``, the hub's cache or the hub.

    Args:
        path: of the set.
        name: its config.
        data_dir: a folder of it, where the set has folders and no configs.

    Raises:
        MissingDataError: none of the places has it; the message names all of them.
    """
    folder = f"{path}/{data_dir}" if data_dir else path
    local = local_folder(path) if local_folder(folder) else None
    try:
        return _load(path, name, local, data_dir)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        root = os.environ.get("W2S_DATA")
        where = f"$W2S_DATA is {root}, without a usable {folder} in it" if root else "$W2S_DATA is not set"
        raise MissingDataError(
            f"the data set {path}{f' ({part})' if (part := name or data_dir) else ''} is not to be had: {where}; the hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0][:160]}; no package holds it. Set W2S_DATA to a "
            f"folder with {folder}/ in it (parquet, CSV or JSONL, columns as on the hub), or go online once."
        ) from error


def sst2(**_: Any) -> Splits:
    """SST-2 (Socher et al. 2013) in hub order: train 67,349, validation 872; columns sentence, label (1 = positive)."""
    loaded = load("stanfordnlp/sst2")
    return {split: loaded[split] for split in ("train", "validation")}


def boolq(**_: Any) -> Splits:
    """BoolQ (Clark et al. 2019): question, passage, label (1 = yes); train 9,427, validation 3,270.

    ``w2s_group`` numbers the passages of the validation rows.
    """
    loaded = load("google/boolq")
    train, validation = (
        loaded[split].add_column("label", [int(a) for a in loaded[split]["answer"][:]]) for split in ("train", "validation")
    )
    return {"train": train, "validation": validation.add_column("w2s_group", numbered(validation["passage"][:]))}


def _split_of(text: str) -> str:
    """A fixed split that no row order can change: by the text's hash, one row in ten to validation."""
    return "validation" if int(digest(text), 16) % 10 == 0 else "train"


@functools.cache
def _movie_review_rows() -> dict[str, list[dict[str, Any]]]:
    path = assets.fetch("movie-reviews") / "movieReviewSnippets_GroundTruth.txt"
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    seen: set[str] = set()
    with path.open(encoding="utf-8", errors="replace", newline="") as f:
        for number, mean, text in csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE):
            sentence = " ".join(text.split())
            if abs(float(mean)) < 0.5 or sentence in seen:
                continue
            seen.add(sentence)
            label = int(float(mean) > 0)
            rows[_split_of(sentence)].append({"idx": number, "sentence": sentence, "mean": float(mean), "label": label})
    # The file is sorted by sentiment, and a row limit takes the first ones: order by hash instead.
    return {split: sorted(found, key=lambda row: digest(row["sentence"])) for split, found in rows.items()}


def movie_reviews(**_: Any) -> Splits:
    """Movie-review sentences (Hutto & Gilbert 2014): label = sign of the mean of human ratings, kept from 0.5 on."""
    return {split: datasets.Dataset.from_list(rows) for split, rows in _movie_review_rows().items()}


def _commonsense(loaded: datasets.DatasetDict, long: bool) -> datasets.DatasetDict:
    # Exactly the long rows hold " | " (title and body); not every copy of the set keeps the column is_short.
    return datasets.DatasetDict(
        {
            split: data.select([i for i, text in enumerate(data["input"][:]) if (" | " in text) == long])
            for split, data in loaded.items()
        }
    )


def _pleasantness_rows(pairs: datasets.Dataset) -> datasets.Dataset:
    """Two rows a pair, the more pleasant scenario first: ``w2s_pair`` numbers it, ``w2s_role`` is 1 for the first."""
    rows = []
    for number, pair in enumerate(pairs):
        for role, column in ((1, "baseline"), (0, "less_pleasant")):
            rows.append({"w2s_pair": number, "w2s_role": role, "activity": pair[column].strip()})
    return datasets.Dataset.from_list(rows)


def _grouped(data: datasets.Dataset, size: int) -> datasets.Dataset:
    """Number the exact-match groups of the paper: `size` consecutive rows are variants of one scenario."""
    return data.add_column("w2s_group", [i // size for i in range(len(data))])


def _contrasted(data: datasets.Dataset) -> datasets.Dataset:
    """Number the contrast pairs: most short scenarios stand beside one that differs in a few words and in what it is."""
    return data.add_column("w2s_group", numbered(families(data["input"][:])))


def _ethics_splits(loaded: datasets.DatasetDict, subtask: str, group_size: int) -> Splits:
    if subtask.startswith("commonsense"):
        loaded = _commonsense(loaded, long=subtask == "commonsense_long")
    splits = {split: loaded[split] for split in ("train", "validation", "test")}
    if subtask == "utilitarianism":
        return {split: _pleasantness_rows(data) for split, data in splits.items()}
    if subtask == "commonsense":
        return {split: data if split == "train" else _contrasted(data) for split, data in splits.items()}
    if group_size > 1:
        return {split: data if split == "train" else _grouped(data, group_size) for split, data in splits.items()}
    return splits


def ethics(subtask: str, group_size: int = 1, **_: Any) -> Splits:
    """One ETHICS subtask (Hendrycks et al. 2021); the hub's validation is the paper's test, its test the hard test."""
    return _ethics_splits(load("hendrycks/ethics", subtask.removesuffix("_long")), subtask, group_size)


@functools.cache
def _probe(subtask: str) -> datasets.DatasetDict:
    folder = Path(__file__).parent / "ethics_probe"
    files = {split: folder / f"{subtask}_{split}.jsonl" for split in ("train", "validation", "test")}
    return datasets.DatasetDict({split: _read_jsonl(path) for split, path in files.items()})


def _read_jsonl(path: Path) -> datasets.Dataset:
    return datasets.Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line])


def ethics_probe(subtask: str, group_size: int = 1, **_: Any) -> Splits:
    """One subtask of the hand-written probe that ships here: ETHICS' columns, our text, not the benchmark."""
    return _ethics_splits(_probe(subtask), subtask, group_size)
