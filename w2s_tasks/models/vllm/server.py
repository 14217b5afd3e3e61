"""A running vLLM server: its models, its adapters, its tokens, and a trial of its log-probabilities.

Started as ``vllm serve MODEL --enable-prefix-caching``, for adapters with ``--enable-lora --max-lora-rank R`` and
``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``, which lets adapters be loaded while it runs.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models.adapters import BASE_CHANGING_INITS, CONFIG, adapter_folder
from w2s_tasks.models.chat.client import Connection
from w2s_tasks.models.chat.replies import BadReplyError, RefusedError, Reply, read_reply
from w2s_tasks.models.chat.wire import Dialect, Endpoint, Request, Writer, resolve_base_url
from w2s_tasks.models.ref import folder_hash
from w2s_tasks.user_text import read_text, shown

ADDRESS = "VLLM_BASE_URL"
LOCAL = "http://localhost:8000/v1"
"""Where vLLM listens by default."""
TOKEN = "token_id:"  # noqa: S105 - vLLM's mark of a token's number
TOLERANCE = 0.5
"""How far two right log-probabilities of a likely token may lie apart: bfloat16 rounds twice. Stale ones are off by more."""
TRIAL = "The committee read the report, asked three questions, and sent it back. " * 24
"""Longer than two blocks of any prefix cache (128 tokens on CPUs), so that a second request is answered out of it."""
LISTED, SLACK = 5, 1.05
"""Likeliest tokens that the trial asks for, and how far rounding may take their sum."""
MOST_TOKENS = 128
"""That one request may name."""
NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_dora": (None, False),
}
"""Options of adapters that vLLM refuses or passes over, with the values under which they do nothing."""


def server_url(given: str | None) -> str:
    """The address of a server: as given, else ``$VLLM_BASE_URL``, else vLLM's own on this machine.

    Raises:
        UserError: no http(s) address.
    """
    return resolve_base_url(given or os.environ.get(ADDRESS) or LOCAL)


@dataclass(frozen=True)
class Card:
    """A model at a server: its name, where its weights are, of which model it is an adapter, and its longest text."""

    name: str
    root: str
    parent: str | None
    max_length: int | None


def named_scores(reply: Reply) -> tuple[dict[int, float], int]:
    """The log-probability of every token that an answer to `Writer.named` tells, and the likeliest token.

    Raises:
        ValueError: it names no tokens by their numbers.
    """
    if not reply.positions:
        raise ValueError("no log-probabilities came")
    position = reply.positions[0]
    listed = {int(t.removeprefix(TOKEN)): x for t, x in position.top if t.startswith(TOKEN)}
    if not position.token.startswith(TOKEN):
        raise ValueError("tokens came without their numbers")
    greedy = int(position.token.removeprefix(TOKEN))
    return {greedy: position.logprob, **listed}, greedy


class Server:
    """What a server is asked besides scores; every call is one request, repeated where the connection fails."""

    def __init__(self, base_url: str, variable: str, timeout: float) -> None:
        self.base_url, self.variable, self.timeout = base_url, variable, timeout

    def connection(self, name: str = "") -> Connection:
        """How to reach one of its models.

        Raises:
            UserError: what can't be a key is in the variable.
        """
        return Connection(Endpoint(self.base_url, name, "completions"), self.variable, self.timeout)

    def _call(self, path: str, body: Mapping[str, Any] | None = None, name: str = "") -> Any:
        """The JSON of an answer, or its text; an absolute path stands beside the interface of OpenAI's protocol.

        Raises:
            RefusedError: it refused.
            UserError: nothing answers.
        """
        import openai

        connection = self.connection(name)
        url = self.base_url.removesuffix("/v1") + path
        try:
            with connection.access.open(timeout=self.timeout, retries=2) as client:
                text = client.get(url, cast_to=str) if body is None else client.post(url, body=dict(body), cast_to=str)
        except openai.APIStatusError as error:
            raise connection.refused(error) from None
        except openai.APIConnectionError as error:
            reason = connection.access.safe(str(error.__cause__ or error)[:300])
            raise UserError(
                f"nothing answers at {self.base_url} ({reason}). Start the server (docs/models.md), or give base_url= or "
                f"${ADDRESS}."
            ) from None
        try:
            return json.loads(text)
        except ValueError:
            return text

    def cards(self) -> list[Card]:
        """The models that it has, adapters among them.

        Raises:
            UserError: it is no vLLM.
        """
        try:
            self._call("/version")
            found = self._call("/v1/models")["data"]
            return [Card(str(m["id"]), str(m["root"]), m.get("parent"), m.get("max_model_len")) for m in found]
        except (RefusedError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, RefusedError) and error.status in (401, 403):
                raise self.connection().access.explain(error) from None
            said = f"{error.status}: {error.message}" if isinstance(error, RefusedError) else f"no {error}"
            raise UserError(
                f"{self.base_url} is no vLLM server, or one of another age: /version and /v1/models do not answer as its do "
                f"({said}). w2s-chat asks any endpoint of OpenAI's protocol."
            ) from None

    def card(self, name: str | None, cards: Sequence[Card]) -> Card:
        """One of its models by name; without one the base model.

        Raises:
            UserError: it has none of that name.
        """
        found = next((c for c in cards if c.name == name or (name is None and c.parent is None)), None)
        if found is None:
            names = [c.name for c in cards]
            raise UserError(
                f"{self.base_url} has no model '{name}'.{nearest(str(name), names)} It has: {', '.join(names) or 'none'}."
            )
        return found

    def tokens(self, text: str, name: str) -> list[int] | None:
        """A text's tokens as the server makes them, without special ones; None where it does not tell."""
        try:
            found = self._call("/tokenize", {"model": name, "prompt": text, "add_special_tokens": False}, name)["tokens"]
            return [int(token) for token in found] or None  # llama.cpp's answers, but to other fields
        except (RefusedError, KeyError, TypeError, ValueError):
            return None

    def load_adapter(self, folder: str) -> str:
        """Load an adapter, unless it is there, and return its name, which its content makes.

        The prefix cache of a server goes by an adapter's name: one name must never stand for other weights.

        Raises:
            UserError: the server loads none, can't read the folder or does not take the adapter.
        """
        path = adapter_folder(folder).absolute()
        _refuse_unserved(path)
        name = f"w2s-{folder_hash(path)[:20]}"
        if any(card.name == name for card in self.cards()):
            return name
        try:
            self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, name)
        except RefusedError as refusal:
            if "already been loaded" not in refusal.message:  # by another process, a moment ago
                raise UserError(f"{self.base_url} did not load the adapter {path}: {_why(refusal)}") from None
        return name

    # ---- trial -------------------------------------------------------------------------------------------------------

    def try_values(self, name: str, tokens: Sequence[int], vocabulary: int) -> Reply:
        """Score named tokens after a known prompt, without the prefix cache and out of it; the answer without.

        No log-probabilities of a prompt are asked for: with ``--enable-lora`` vLLM 0.32 ends on that where another request
        is under way (`punica_cpu.add_lora_logits`).

        Args:
            name: the model's.
            tokens: of `TRIAL`, as the model's tokenizer makes them.
            vocabulary: the number of all tokens.

        Raises:
            UserError: the server names no tokens, its cache gives other values, or they are no log-probabilities.
        """
        writer = Writer(self.connection(name).endpoint, Dialect(top=LISTED))
        *prompt, target = tokens
        named = sorted({target, *prompt[:7]})
        try:
            fresh = self._reply(writer.named(prompt, named), salt=True)
            cached = [self._reply(writer.named(prompt, named)) for _ in range(2)][-1]
            pairs = [(named_scores(fresh)[0][token], named_scores(cached)[0][token]) for token in named]
            listed = self._reply(writer.first_token(prompt)).positions or ()
            mass = sum(math.exp(x) for _, x in listed[0].top)
        except (ValueError, KeyError, IndexError, OverflowError, BadReplyError) as error:
            raise UserError(
                f"{self.base_url} does not tell the log-probabilities of named tokens ({error}). That needs a vLLM whose "
                "/v1/completions takes logprob_token_ids (0.32 does), with --logprobs-mode raw_logprobs, its default."
            ) from None
        except RefusedError as refusal:
            raise self.connection(name).explain(refusal) from None
        for first, second in pairs:
            if abs(first - second) > TOLERANCE:
                raise UserError(
                    f"{self.base_url} gives two log-probabilities for one token after one prompt, {first:.3f} and out of "
                    f"its prefix cache {second:.3f}. Start it with --no-enable-prefix-caching, or use another version."
                )
        # The likeliest of all tokens have together at least their share, and at most 1.
        if not LISTED / vocabulary / SLACK <= mass <= SLACK:
            raise UserError(
                f"{self.base_url} calls the likeliest tokens {mass:.3g} likely together: these are no log-probabilities. "
                "Start it with --logprobs-mode raw_logprobs, the default."
            )
        return fresh

    def _reply(self, request: Request, *, salt: bool = False) -> Reply:
        salted = {"cache_salt": uuid.uuid4().hex} if salt else {}
        data = self._call(f"/v1{request.path}", {**request.body, **salted}, str(request.body["model"]))
        return read_reply("completions", data)


def _refuse_unserved(folder: Path) -> None:
    """Refuse an adapter with what vLLM would leave out, or refuse in words of its own.

    Raises:
        UserError: names the option.
    """
    config = json.loads(read_text(folder / CONFIG))
    bad = [option for option, values in NOT_SERVED.items() if config.get(option) not in values]
    if config.get("init_lora_weights") in BASE_CHANGING_INITS:
        bad.append("init_lora_weights")
    if bad:
        raise UserError(
            f"{folder / CONFIG}: {bad[0]} = {shown(config[bad[0]])} is not served by vLLM as PEFT has it. Merge the adapter "
            "into its base (PEFT's merge_and_unload) and serve that, or use w2s-hf."
        )


def _why(refusal: RefusedError) -> str:
    """What a server says of an adapter, and what to do."""
    if "No adapter found" in refusal.message:
        return f"{refusal.message}. It has to see the folder under the same path."
    if refusal.status in (404, 405):
        return (
            "it loads none while it runs. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora "
            "--max-lora-rank R, or serve the adapter from the start (--lora-modules NAME=FOLDER) and name it: model=NAME."
        )
    return refusal.message
