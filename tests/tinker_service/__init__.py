"""A stand-in of Thinking Machines' training service, Tinker: real HTTP for the real SDK, and real training of a small model.

    with Service({"tiny/base": folder}, tmp_path) as service:
        client = tinker.ServiceClient(base_url=service.base_url, api_key=service.key)

It reads and writes with the installed SDK's own messages and types. `service.log` has every request, `service.work` what
was really done and for how many tokens, `process.running` starts one in a process of its own. What can go wrong:

    service.faults.add("POST /api/v1/optim_step", "status", status=500)  # a request; see `loopback.faults`
    service.futures.add("FUTURE optim_step", "stall")                    # a promise that is never kept
    service.futures.add("FUTURE sample", "fail", code="user")            # a promise that ends in an error; or code="server"
    service.lose_sessions()                                              # all sessions are over

Known, from the SDK's source and from what users of the service report:

- The forms of requests and answers, the order of a run's work by `seq_id`, ids such as `SESSION:train:0`.
- A loss is `sum(-logprobs * weights)`; gradients add up until a step. Adam is torch's AdamW.
- A name that is taken is answered 409 when the save is sent, and the SDK repeats that for five minutes.
- LoRA's alpha is 32, as exported configurations say. The unembedding's tensors are called
  `base_model.model.model.unembed_tokens.lora_A.weight`, all others as in the model.
- Weights leave by `save_weights_external` and an address a file. This SDK downloads no sampler checkpoints and no archives.

Guessed:

- The answers for a session that is over (410), one that is unknown (404) and unknown base models (400). A text that is too
  long, or inputs that a loss does not take: the promise fails as the user's error.
- A `seq_id` that was seen before gets its first promise, also when the answer to that was lost. Users have seen a repeated
  save meet its own checkpoint; `service.idempotent_saves = False` does that.
- Exported weights have the names that archives had, and `target_modules` "all-linear"; `service.names = "peft"` has PEFT's.
- A starts uniform with the bound 1 / sqrt(in) and B at zero, which is PEFT's way.
- A sample ends with its stop token; its log-probabilities are those before temperature. A forward pass is billed as prefill.
- Log-probabilities are computed in float32.

Left out: images and sound, other losses and optimizers than cross_entropy and AdamW, losses that run on the server,
projects, publishing, copies of weights, billing and audit.
"""

from __future__ import annotations

from . import rest, sampling, training
from .app import Service, Work, read_work
from .models import ALPHA

__all__ = ["ALPHA", "Service", "Work", "read_work", "rest", "sampling", "training"]
