"""The SDK's protocol buffers, read and written with its own messages, and the forms of errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from loopback import Answer
from tinker import types
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.response_conv import _tensor_data_from_proto as tensor_of

PROTO = "application/x-protobuf"
MASKED = (0, -99999.0)
"""The token and the log-probability of a place without any (`tinker.types.topk_logprobs`)."""


class ApiError(Exception):
    """An error answer to a request."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class UserFault(Exception):
    """Promised work that fails by a mistake of the user's."""


def failed(message: str, category: types.RequestErrorCategory) -> Answer:
    """What a promise gives whose work failed."""
    return Answer(types.RequestFailedResponse(error=message, category=category).model_dump_json().encode())


@dataclass(frozen=True)
class Row:
    """One datum: its tokens, and K targets with weights for each place (``[T, K]``; `flat` where they came as ``[T]``)."""

    tokens: list[int]
    targets: torch.Tensor
    weights: torch.Tensor
    flat: bool


def read_passes(body: bytes) -> pb.ForwardBackwardRequest:
    """A request for a forward pass.

    Raises:
        ApiError: 422 for another protocol's bytes.
    """
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ApiError(422, f"not a ForwardBackwardRequest: {error}") from None
    return message


def rows_of(message: pb.ForwardBackwardRequest) -> list[Row]:
    """The data of a forward pass under cross_entropy.

    Raises:
        UserFault: Another loss, other inputs, or shapes that don't go together.
    """
    if message.loss_fn != "cross_entropy":
        raise UserFault(f"the stand-in has no loss {message.loss_fn!r}, only cross_entropy")
    return [_row(datum) for datum in message.data]


def _row(datum: pb.Datum) -> Row:
    tokens = [token for chunk in datum.model_input for token in _tokens(chunk)]
    given = {name: tensor_of(tensor).to_torch() for name, tensor in datum.loss_fn_inputs.items()}
    if set(given) != {"target_tokens", "weights"}:
        raise UserFault(f"cross_entropy takes target_tokens and weights, not {sorted(given)}")
    targets, weights = given["target_tokens"], given["weights"]
    if targets.shape != weights.shape or targets.shape[:1] != (len(tokens),) or targets.dim() > 2:
        raise UserFault(f"{len(tokens)} tokens, targets {list(targets.shape)} and weights {list(weights.shape)}")
    flat = targets.dim() == 1
    return Row(tokens, targets.view(len(tokens), -1), weights.view(len(tokens), -1).float(), flat)


def _tokens(chunk: pb.Chunk) -> list[int]:
    if chunk.WhichOneof("chunk") != "encoded_text":
        raise UserFault("the stand-in reads text alone")
    found: list[int] = np.frombuffer(chunk.encoded_text.tokens, dtype=np.int32).tolist()
    return found


def passes_done(rows: Sequence[Row], logprobs: Sequence[torch.Tensor]) -> Answer:
    """The answer to a forward pass: each target's log-probability (``[T, K]`` by row) and the loss, summed over all."""
    loss = -sum(float((row.weights * found).sum()) for row, found in zip(rows, logprobs, strict=True))
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics={"loss:sum": loss})
    pairs = zip(rows, logprobs, strict=True)
    for shape, group in itertools.groupby(pairs, lambda pair: [] if pair[0].flat else [pair[1].shape[1]]):
        arrays = [found.numpy().astype(np.float32).tobytes() for _, found in group]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64).tobytes()
        field = pb.BatchedTensor(data=b"".join(arrays), offsets=offsets, dtype=pb.DTYPE_FLOAT32, trailing_shape=shape)
        message.loss_fn_outputs.append(pb.ArrayRecord(fields={"logprobs": field}, num_datums=len(arrays)))
    return Answer(message.SerializeToString(), content_type=PROTO)


def top(scores: torch.Tensor, k: int, masked: int = 0) -> pb.TopkLogprobs:
    """The k likeliest tokens of each place of ``[T, V]``, after `masked` places without any."""
    best = scores.topk(k, dim=-1)
    ids = np.concatenate([np.full((masked, k), MASKED[0]), best.indices.numpy()]).astype(np.int32)
    logprobs = np.concatenate([np.full((masked, k), MASKED[1]), best.values.numpy()]).astype(np.float32)
    return pb.TopkLogprobs(token_ids=ids.tobytes(), logprobs=logprobs.tobytes(), k=k, length=len(ids))


def targeted(scores: torch.Tensor, asked: Any) -> pb.Tensor:
    """The log-probabilities of the token ids that a request names at each place of ``[T - 1, V]``, in its own layout.

    Raises:
        UserFault: A tensor with another number of rows.
    """
    if asked.shape is None or len(asked.shape) != 2 or asked.shape[0] != len(scores):
        raise UserFault(f"target_prompt_logprobs of shape {asked.shape} for a prompt of {len(scores) + 1} tokens")
    ids = asked.to_torch(-1)
    found = torch.where(ids < 0, 0.0, scores.gather(-1, ids.clamp(min=0)))
    message = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=asked.shape)
    if asked.sparse_crow_indices is None:
        message.dense = found.numpy().astype(np.float32).tobytes()
        return message
    crow, columns = np.asarray(asked.sparse_crow_indices, np.int64), np.asarray(asked.sparse_col_indices, np.int64)
    places = np.repeat(np.arange(len(scores)), np.diff(crow))
    message.sparse_csr.values = found.numpy()[places, columns].astype(np.float32).tobytes()
    message.sparse_csr.crow_indices, message.sparse_csr.col_indices = crow.tobytes(), columns.tobytes()
    return message
