"""A frozen model under a memory as lm-eval sees a model: for its ``simple_evaluate``, and for any task of its own.

>>> from lm_eval import simple_evaluate
>>> from namm import Memory
>>> lm = lm_eval_model(load_language_model(settings), Memory.from_pretrained("runs/first/champion").build())
>>> simple_evaluate(model=lm, tasks=[build_task(suite_task_settings).lm_eval_task])

Prompts become tokens, completions end and answers are read as in ``workers.evaluator``, so the numbers are those of
``namm evaluate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.logging import tqdm

from tasks.libraries import library
from tasks.task import CompletionExample
from workers.decoding import complete, score_answers
from workers.errors import PromptError
from workers.language_model import LanguageModel
from workers.memory.memory import KeepAll, Memory
from workers.prompts import PromptEncoder
from workers.settings import PromptSettings
from workers.stopping import Stops

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

DEFAULT_NEW_TOKENS = 256
"""Of a completion whose task sets no limit, as in lm-eval's own models."""


def lm_eval_model(
    language_model: LanguageModel, memory: Memory | None = None, prompts: PromptSettings | None = None
) -> LM:
    """An ``lm_eval.api.model.LM``.

    Args:
        language_model: the frozen model.
        memory: under one genome, if it has any (``PretrainedMemory.build()``); None for the full cache.
        prompts: how text becomes tokens.

    Raises:
        TaskError: lm-eval is not installed.
        PromptError: the settings do not fit the model, or ask for a chat template, which lm-eval puts around prompts
            itself.
    """
    settings = prompts or PromptSettings()
    if settings.chat_template:
        raise PromptError("prompts.chat_template is true, but lm-eval hands over finished prompts: set it false")
    base: Any = library("lm_eval.api.model").LM
    answering = _Answering(language_model, memory or KeepAll(), settings)

    class MemoryLM(base):  # type: ignore[misc]  # lm_eval is untyped
        """Answers lm-eval's requests one by one."""

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            return [answering.completion(*request.args) for request in tqdm(requests, disable=disable_tqdm)]

        def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [answering.log_probability(*request.args) for request in tqdm(requests, disable=disable_tqdm)]

        def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("perplexity of whole texts: measure it with the model itself")

    model: LM = MemoryLM()
    return model


class _Answering:
    """What the model says, text in and text out."""

    def __init__(self, language_model: LanguageModel, memory: Memory, settings: PromptSettings) -> None:
        self._language_model = language_model
        self._memory = memory
        self._prompts = PromptEncoder(language_model.tokenizer, language_model.max_tokens, settings)

    def completion(self, prompt: str, options: Mapping[str, Any]) -> str:
        """The greedy completion of a prompt, up to its ending."""
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise PromptError("this task asks for sampling, but answers are decoded greedily: set do_sample false")
        until = options.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        most = int(options.get("max_gen_toks", DEFAULT_NEW_TOKENS))
        encoded = self._prompts.prompt(_example(prompt, "", most, stop))
        stops = Stops(self._language_model, stop)
        completions, _ = complete(
            self._language_model.model,
            self._memory,
            self._tensor(encoded.ids),
            1,
            max_new_tokens=most,
            has_ended=stops,
        )
        return stops.text(completions[0])

    def log_probability(self, context: str, continuation: str) -> tuple[float, bool]:
        """Natural logarithm of a continuation's probability, and whether greedy decoding would have produced it."""
        ids, span = self._prompts.continued(_example(context, continuation, 0, ()))
        answers, _ = score_answers(self._language_model.model, self._memory, self._tensor(ids), [span], 1)
        num_tokens = span[1] - span[0]
        return float(answers.mean_log_probability[0, 0]) * num_tokens, bool(answers.is_greedy[0, 0])

    def _tensor(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self._language_model.input_device)


def _example(prompt: str, answer: str, max_new_tokens: int, stop: tuple[str, ...]) -> CompletionExample:
    return CompletionExample(
        task="lm-eval request",
        split="heldout",
        index=0,
        prompt=prompt,
        answers=(answer,),
        max_new_tokens=max_new_tokens,
        stop=stop,
        is_chat=False,
    )
