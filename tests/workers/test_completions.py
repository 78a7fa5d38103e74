"""Tasks whose answers are decoded freely: the evaluator against the plain model's own ``generate``."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tasks.generated import GeneratedTask
from tasks.task import CompletionExample
from workers.evaluator import Evaluator
from workers.language_model import load_language_model
from workers.memory.specs import NammSettings, NammSpec, RivalSpec
from workers.settings import ModelSettings, PromptSettings
from workers.unit import Unit

SETTINGS = NammSettings(update_every=16, window=16, hop=8, hidden_size=8, heads="ragged")
GENOMES = np.random.default_rng(1).normal(0, 1, (3, SETTINGS.genome_size)).astype(np.float32)
FULL, NONE = RivalSpec(name="full", update_every=16), np.zeros((1, 0), np.float32)


@dataclasses.dataclass
class Facts:
    """A fact is asked for at the end of a document; a completion is over after its first word."""

    name: str = "facts"
    stop: tuple[str, ...] = (" ",)
    said: list[str] = dataclasses.field(default_factory=list)

    def num_examples(self, _split):
        return None

    def example(self, split, index):
        length = (60, 75)[index % 2]  # so that a unit does not fit into one batch
        drawn = GeneratedTask("facts", "facts_prose", length, 4, 1, seed=0).example(split, index)
        (question,) = drawn.questions
        return CompletionExample(
            task=self.name,
            split=split,
            index=index,
            prompt=drawn.prompt + question.text,
            answers=(question.answer,),
            max_new_tokens=5,
            stop=self.stop,
        )

    def score(self, example, completion):
        self.said.append(completion)
        return float(completion == example.answers[0])


@pytest.fixture(scope="module")
def small_llama():
    return load_language_model(ModelSettings(path_or_id="small-llama"))


def evaluated(small_llama, memory, genomes, task=None, **changes):
    task = task or Facts()
    unit = Unit(
        generation=0,
        memory_name="memory",
        memory=memory,
        task=task.name,
        split="heldout",
        examples=(0, 1, 2, 3),
        candidates=tuple(range(len(genomes))),
        genomes=genomes,
    )
    evaluator = Evaluator(small_llama, {task.name: task}, PromptSettings())
    return evaluator.score(dataclasses.replace(unit, **changes)), task


def test_with_the_full_cache_it_says_what_generate_says(small_llama):
    scored, task = evaluated(small_llama, FULL, NONE, Facts(stop=()))
    expected = []
    for index in (0, 2, 1, 3):  # by length, as they were batched
        ids = torch.tensor([small_llama.prompt_ids(task.example("heldout", index).prompt)])
        whole = small_llama.model.generate(ids, max_new_tokens=5, do_sample=False)
        expected.append(small_llama.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    assert task.said == expected
    assert scored.seen_tokens.tolist() == [
        len(small_llama.prompt_ids(task.example("heldout", index).prompt)) + 4 for index in range(4)
    ]  # the last token is not fed back


def test_the_small_llama_finds_its_facts_and_ends_where_the_task_says(small_llama):
    scored, task = evaluated(small_llama, FULL, NONE)
    assert scored.exact.tolist() == [1.0] * 4
    assert all(" " not in text for text in task.said)
    assert np.isnan(scored.graded).all()
    prompts = [len(small_llama.prompt_ids(task.example("heldout", index).prompt)) for index in range(4)]
    assert scored.seen_tokens.tolist() == [length + 1 for length in prompts]  # two words, the second not fed back


@pytest.mark.parametrize("score", ["exact", "graded"])
def test_rows_do_not_depend_on_who_shares_the_unit(score, small_llama):
    memory = NammSpec(settings=SETTINGS)
    whole, _ = evaluated(small_llama, memory, GENOMES, score=score)
    rows = {
        (c, e): (getattr(whole, score)[row], whole.seen_tokens[row], whole.held_tokens[row].tolist())
        for row, (c, e) in enumerate(zip(whole.candidate.tolist(), whole.example.tolist(), strict=True))
    }
    for candidate in range(len(GENOMES)):
        for example in range(4):
            alone, _ = evaluated(
                small_llama,
                memory,
                GENOMES[candidate : candidate + 1],
                candidates=(candidate,),
                examples=(example,),
                score=score,
            )
            value, seen, held = rows[candidate, example]
            assert getattr(alone, score)[0] == pytest.approx(value, abs=1e-5)
            assert alone.seen_tokens[0] == seen
            assert alone.held_tokens[0].tolist() == held


def test_a_graded_completion_is_the_probability_of_the_gold_answer_by_the_token(small_llama):
    scored, task = evaluated(small_llama, FULL, NONE, score="graded")
    assert np.isnan(scored.exact).all()
    for row, index in enumerate(scored.example.tolist()):
        example = task.example("heldout", index)
        # The prompt ends in ``key=``, with no white space, so that a space sets the answer off; it is no token here.
        ids = torch.tensor([small_llama.prompt_ids(example.prompt)])
        (answer,) = small_llama.continuation_ids(f" {example.answers[0]}")
        with torch.inference_mode():
            probability = small_llama.model(ids).logits[0, -1].double().softmax(-1)[answer]
        assert scored.graded[row] == pytest.approx(float(probability), abs=1e-5)
        assert not math.isnan(scored.graded[row])
