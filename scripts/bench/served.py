"""Evaluation on a vLLM server: `w2s-vllm` against lm_eval's `local-completions`, on the same server, documents and shots.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-prefix-caching ...
    scripts/bench_eval --peer vllm --base-url http://localhost:8000/v1 --model MODEL

The server's prefix cache is emptied before every run (its development mode takes that request), so that no side finds what
the other left there. Tokens are those of prompts that the server computed, by its own counters.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.comparison import Comparison, alternate, say
from bench.runs import fastest, result, run_ours, run_peer, stratified
from bench.scoring import Answers, Scorer
from bench.side import Side, TokenMeter
from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.replies import RefusedError
from w2s_tasks.models.vllm.server import Server

TRIED = 8
"""Documents on which each batch size of the peer is tried."""


class _ServerMeter(TokenMeter):
    """Counts the tokens of prompts that a server did not find in its cache, whoever asks."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def tokens(self) -> int:  # type: ignore[override]
        """All so far."""
        text = str(self._server._call("/metrics"))

        def total(name: str) -> float:
            return sum(float(x) for x in re.findall(rf"^vllm:{name}(?:_total)?{{[^}}]*}} ([\d.e+]+)$", text, re.M))

        return round(total("prompt_tokens") - total("prompt_tokens_cached"))


class ServedScorer(Scorer):
    """Scores documents on a server by one engine."""

    def __init__(self, engine: str, base_url: str, concurrent: int, **common: Any) -> None:
        """Open the server and render the documents.

        Args:
            engine: w2s-vllm or local-completions.
            base_url: the server's address.
            concurrent: requests in flight.
            common: as for `Scorer`.
        """
        self.server = Server(base_url, "VLLM_API_KEY", 600)
        self.concurrent = concurrent
        super().__init__(engine, **common)
        self.meter = _ServerMeter(self.server)

    def open(self, engine: str, model: str, dtype: str) -> Any:
        """The lm_eval model."""
        from lm_eval.api.registry import get_model

        card = self.server.card(None, self.server.cards())
        ours = {"pretrained": model, "base_url": self.server.base_url, "num_concurrent": self.concurrent}
        peer = {
            "model": card.name,
            "base_url": f"{self.server.base_url}/completions",
            "tokenizer": model,
            "num_concurrent": self.concurrent,
            "max_length": card.max_length,
        }
        return get_model(engine).create_from_arg_obj(ours if engine == "w2s-vllm" else peer, {})

    def empty(self) -> None:
        """Forget what earlier runs left, in the server's cache and in ours.

        Raises:
            UserError: the server does not take that request.
        """
        if hasattr(self.lm, "served"):
            self.lm._store, self.lm._served = tempfile.mkdtemp(prefix="w2s-bench-"), {}
            assert self.lm.served  # noqa: S101 - the trial, which is no part of the time
        try:
            self.server._call("/reset_prefix_cache", {})
        except RefusedError as refusal:
            raise UserError(
                f"{self.server.base_url} does not empty its prefix cache ({refusal.status}): start it with "
                "VLLM_SERVER_DEV_MODE=1, or every run after the first would find its prompts there."
            ) from None

    def score(self, documents: Sequence[int], batch: int | None = None) -> Answers:
        """Log-likelihoods of some documents' requests, tokenization included; `batch` is prompts a request, for the peer."""
        if batch is not None:
            self.lm._batch_size = batch
        flat = [request for i in documents for request in self.requests[i]]
        answers = iter(self.lm.loglikelihood(flat, disable_tqdm=True))
        return [[next(answers) for _ in self.requests[i]] for i in documents]


def compare_served(
    common: dict[str, Any], base_url: str, concurrent: int, batches: Sequence[int], peer_docs: int, repeats: int
) -> Comparison:
    """Let both sides score on one server, in turns.

    Args:
        common: what `Side` and `Scorer` take.
        base_url: the server's address.
        concurrent: requests in flight, on both sides.
        batches: prompts a request, the peer's best of which is used.
        peer_docs: documents that the peer scores, its time scaled to all; 0 for all.
        repeats: runs of each side.
    """
    where: dict[str, Any] = {"base_url": base_url, "concurrent": concurrent}
    with (
        Side("ours", ServedScorer, engine="w2s-vllm", **where, **common) as ours,
        Side("peer", ServedScorer, engine="local-completions", **where, **common) as peer,
    ):
        names = ours.call("documents").value
        found: dict[int, float | None] = {}
        some = range(min(TRIED, len(names)))
        for batch in batches:
            peer.call("empty")
            found[batch] = seconds = peer.call("score", some, batch).seconds / len(some)
            say(f"peer, {batch} prompts a request: {seconds:.3f} s a document")
        best = fastest(found)[0]
        sample = stratified(names, min(peer_docs or len(names), len(names)), common["seed"])
        fits = dict.fromkeys(sample, best)

        def mine(_: int) -> Any:
            ours.call("empty")
            return run_ours(ours, range(len(names)))

        def theirs(_: int) -> Any:
            peer.call("empty")
            return run_peer(peer, sample, Counter(names), fits)

        replies, runs = alternate(mine, theirs, repeats)
    settings: dict[str, Any] = {"docs": len(names), "concurrent": concurrent, "peer": "lm_eval local-completions on vLLM"}
    settings |= {"peer_batch": best, "peer_batch_search": {str(batch): seconds for batch, seconds in found.items()}}
    return result(replies, runs, float("nan"), len(names), settings)
