"""From an example's text to token ids: beginning of sequence, chat template, and what gives way when it is too long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from tasks.task import CompletionExample, Example
from workers.errors import PromptError
from workers.settings import PromptSettings

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as token ids: the prompt, then each question with its gold answer."""

    prompt_tokens: int
    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    """Where each gold answer stands in ``ids``; empty for a prompt to be completed."""
    num_cut_tokens: int = 0
    """Tokens of the prompt that had to give way."""

    def truncated(self, budget: int, update_every: int) -> EncodedExample:
        """With the middle of the prompt cut out, so that as much is cached in the end as under an evicting memory.

        Such a memory holds ``budget`` tokens after its last update and everything read since.
        """
        after_prompt = len(self.ids) - self.prompt_tokens
        keep = max(2, budget + len(self.ids) % update_every - after_prompt)
        if keep >= self.prompt_tokens:
            return self
        cut = self.prompt_tokens - keep
        ids = _without_middle(self.ids[: self.prompt_tokens], keep) + self.ids[self.prompt_tokens :]
        spans = tuple((start - cut, stop - cut) for start, stop in self.spans)
        return replace(self, prompt_tokens=keep, ids=ids, spans=spans)


class PromptEncoder:
    """Encodes the examples of one model under one set of settings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model_tokens: int, settings: PromptSettings) -> None:
        """Check the settings against the model.

        Args:
            tokenizer: of the model.
            model_tokens: longest text that the model was made for.
            settings: how prompts become token ids.

        Raises:
            PromptError: the model has no such window, no chat template, or no beginning-of-sequence token.
        """
        self._tokenizer: Any = tokenizer
        self.settings = settings
        self.max_tokens = settings.max_tokens or model_tokens
        if self.max_tokens > model_tokens:
            raise PromptError(
                f"prompts.max_tokens is {self.max_tokens}, but the model was made for {model_tokens}: "
                "lower it, or stretch the positions with model.rope_ntk_factor"
            )
        if settings.bos and self._tokenizer.bos_token_id is None:
            raise PromptError("prompts.bos is true, but the tokenizer has no beginning-of-sequence token: set it null")
        if settings.chat_template and not self._tokenizer.chat_template:
            raise PromptError("prompts.chat_template is true, but the tokenizer has none: set it false")

    def questions(self, example: Example) -> EncodedExample:
        """A prompt, then each question with its gold answer; the pieces are encoded one by one and joined.

        Raises:
            PromptError: it is too long, and nothing may be cut.
        """
        after: list[int] = []
        spans: list[Span] = []
        for question in example.questions:
            after += self._plain_ids(question.text)
            answer = self._plain_ids(question.answer)
            spans.append((len(after), len(after) + len(answer)))
            after += answer
        prompt, num_cut = self._prompt_ids(example, reserve=len(after), is_chat=False)
        shifted = tuple((start + len(prompt), stop + len(prompt)) for start, stop in spans)
        return EncodedExample(len(prompt), (*prompt, *after), shifted, num_cut)

    def prompt(self, example: CompletionExample) -> EncodedExample:
        """A prompt alone, with room left for the longest completion.

        Raises:
            PromptError: it is too long, and nothing may be cut.
        """
        prompt, num_cut = self._prompt_ids(example, reserve=example.max_new_tokens, is_chat=example.is_chat)
        return EncodedExample(len(prompt), tuple(prompt), (), num_cut)

    def answered(self, example: CompletionExample) -> EncodedExample:
        """The same prompt with the first gold answer after it, set off by a space unless white space stands there.

        Raises:
            PromptError: as ``prompt``.
        """
        prompt = self.prompt(example)
        gap = "" if not example.prompt or example.prompt[-1].isspace() or not example.prompt.isascii() else " "
        # No gold answer is longer than what a completion may be, but one that is would not fit the window.
        answer = self._plain_ids(gap + example.answers[0])[: example.max_new_tokens]
        span = (prompt.prompt_tokens, prompt.prompt_tokens + len(answer))
        return replace(prompt, ids=(*prompt.ids, *answer), spans=(span,))

    def continued(self, example: CompletionExample) -> tuple[tuple[int, ...], Span]:
        """The prompt with its gold answer right behind it, all of it, and where that stands.

        Raises:
            PromptError: as ``prompt``.
        """
        answer = self._plain_ids(example.answers[0])
        prompt = self.prompt(replace(example, max_new_tokens=len(answer)))
        return (*prompt.ids, *answer), (prompt.prompt_tokens, prompt.prompt_tokens + len(answer))

    def text(self, ids: tuple[int, ...] | list[int]) -> str:
        """Token ids as text, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    # What a prompt is made of ----------------------------------------------------------------------------------------

    def _prompt_ids(
        self, example: Example | CompletionExample, *, reserve: int, is_chat: bool
    ) -> tuple[list[int], int]:
        """Ids of a prompt with whatever stands around it, and how many tokens of it were cut."""
        before, behind = self._around(is_chat=is_chat)
        room = self.max_tokens - reserve - len(before) - len(behind)
        ids = self._plain_ids(example.prompt)
        num_cut = max(0, len(ids) - room)
        if room < 2 or (num_cut and self.settings.truncation == "refuse"):
            remedy = "set prompts.truncation to middle" if room >= 2 else "choose a longer window"
            raise PromptError(
                f"example {example.index} of {example.task} has {len(before) + len(ids) + len(behind)} tokens, and "
                f"needs {reserve} more for what follows, but there is room for {self.max_tokens}: {remedy}, or take a "
                "shorter task"
            )
        if num_cut and self.settings.truncation == "middle":
            half = room // 2
            ids = self._plain_ids(self.text(ids[:half]) + self.text(ids[len(ids) - half :]))
        # What was decoded and encoded again may have become longer than it was.
        return [*before, *_without_middle(tuple(ids), min(room, len(ids))), *behind], num_cut

    def _around(self, *, is_chat: bool) -> tuple[list[int], list[int]]:
        """Ids that stand before and behind every prompt."""
        if is_chat and self.settings.chat_template:
            mark = "\x00"
            template = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
            )
            before, _, behind = template.partition(mark)
            return self._plain_ids(before), self._plain_ids(behind)
        whole = list(self._tokenizer("a")["input_ids"])
        plain = self._plain_ids("a")
        start = whole.index(plain[0]) if plain and plain[0] in whole else 0
        before, behind = whole[:start], whole[start + len(plain) :]
        bos = self._tokenizer.bos_token_id
        if self.settings.bos is True and before != [bos]:
            before = [bos]
        elif self.settings.bos is False:
            before = [token for token in before if token != bos]
        # An end-of-sequence token that a tokenizer puts behind every text would end the prompt too.
        return before, [token for token in behind if token != self._tokenizer.eos_token_id]

    def _plain_ids(self, text: str) -> list[int]:
        # Not verbose: what is too long for the model is our concern, and will be cut or refused.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _without_middle(ids: tuple[int, ...], keep: int) -> tuple[int, ...]:
    """The first and last tokens, ``keep`` in all; where that is odd the first half has one more."""
    head = (keep + 1) // 2
    return ids[:head] + ids[len(ids) - (keep - head) :]
