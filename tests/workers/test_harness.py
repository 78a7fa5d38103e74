"""lm-eval's ``simple_evaluate`` over our ``LM`` class: the numbers of the evaluator, to the bit."""

import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from tasks.registry import SuiteTaskSettings, build_task
from tests.tasks import staging
from workers.errors import PromptError
from workers.evaluator import Evaluator
from workers.harness import lm_eval_model
from workers.language_model import load_language_model
from workers.memory.build import build_memory
from workers.memory.specs import NammSettings, NammSpec, RivalSpec
from workers.settings import ModelSettings, PromptSettings
from workers.unit import Unit

SETTINGS = NammSettings(update_every=16, window=16, hop=8, hidden_size=8, heads="ragged")
GENOME = np.random.default_rng(5).normal(0.0, 1.0, (1, SETTINGS.genome_size)).astype(np.float32)
MEMORIES = {
    "full": (RivalSpec(name="full", update_every=16), np.zeros((1, 0), np.float32)),
    "recent": (RivalSpec(name="recent", update_every=16, budget=((8, 8), (8, 8))), np.zeros((1, 0), np.float32)),
    "namm": (NammSpec(settings=SETTINGS), GENOME),
}
TASKS = (("longbench", "trec"), ("longbench", "dureader"), ("infinitebench", "passkey"), ("ruler", "vt"))


@pytest.fixture(scope="module")
def small_llama():
    return load_language_model(ModelSettings(path_or_id="small-llama"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("staged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAMM_CACHE", str(tmp_path_factory.mktemp("cache")))
        staging.stage_all(root)
        yield root


@contextlib.contextmanager
def quiet_library():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", MEMORIES)
def test_simple_evaluate_gives_the_numbers_of_the_evaluator(name, small_llama, root):
    settings = [
        SuiteTaskSettings(
            kind=kind, task=task, profile="paper", data=str(root), length=staging.LENGTH if kind == "ruler" else None
        )
        for kind, task in TASKS
    ]
    tasks = {each.name: build_task(each) for each in settings}
    spec, genomes = MEMORIES[name]
    prompts = PromptSettings(max_tokens=1024, truncation="middle")
    evaluator = Evaluator(small_llama, tasks, prompts)
    ours = {
        task.lm_eval_task.task_name: evaluator.score(
            Unit(
                generation=0,
                memory_name=name,
                memory=spec,
                task=task.name,
                split="heldout",
                examples=(0, 1, 2),
                candidates=(0,),
                genomes=genomes,
            )
        ).exact
        for task in tasks.values()
    }
    with quiet_library():
        theirs = simple_evaluate(
            model=lm_eval_model(small_llama, build_memory(spec, genomes), prompts),
            tasks=[task.lm_eval_task for task in tasks.values()],
            samples={task.lm_eval_task.task_name: list(task.row_numbers("heldout")[:3]) for task in tasks.values()},
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
    assert set(theirs["results"]) == set(ours)
    for task in tasks.values():
        key = task.lm_eval_task.task_name
        assert theirs["results"][key][f"{task.score_name},none"] == pytest.approx(ours[key].mean(), abs=1e-12)
        by_row = {sample["doc_id"]: sample[task.score_name] for sample in theirs["samples"][key]}
        assert [by_row[row] for row in task.row_numbers("heldout")[:3]] == ours[key].tolist()


def test_a_continuation_is_as_probable_as_the_plain_model_says(small_llama):
    lm = lm_eval_model(small_llama)
    context, continuation = "the lantern captain=amber follows this river\nask captain=", "amber\nask"
    ids = torch.tensor([small_llama.prompt_ids(context) + small_llama.continuation_ids(continuation)])
    num_new = len(small_llama.continuation_ids(continuation))
    with torch.inference_mode():
        logits = small_llama.model(ids).logits[0, -num_new - 1 : -1].double()
    expected = torch.log_softmax(logits, -1).gather(-1, ids[0, -num_new:, None]).sum()
    ((found, is_greedy),) = lm.loglikelihood([SimpleNamespace(args=(context, continuation))], disable_tqdm=True)
    assert found == pytest.approx(float(expected), abs=1e-5)
    assert is_greedy == bool((logits.argmax(-1) == ids[0, -num_new:]).all())


def test_a_completion_ends_at_the_tasks_stop_or_limit(small_llama):
    lm = lm_eval_model(small_llama)
    prompt = "the lantern captain=amber follows this river\nask captain="

    def said(**options):
        return lm.generate_until([SimpleNamespace(args=(prompt, options))], disable_tqdm=True)[0]

    whole = said(max_gen_toks=6, until=[])
    assert whole.split()[0] == "amber"
    assert said(max_gen_toks=1) == "amber"
    assert said(max_gen_toks=6, until="amber") == ""
    assert whole.startswith(said(max_gen_toks=3, until=["\n"]).rstrip())


def test_what_it_cannot_do_is_said(small_llama):
    with pytest.raises(PromptError, match="lm-eval hands over finished prompts"):
        lm_eval_model(small_llama, prompts=PromptSettings(chat_template=True))
    lm = lm_eval_model(small_llama)
    sampled = SimpleNamespace(args=("a", {"do_sample": True, "temperature": 0.7}))
    with pytest.raises(PromptError, match="decoded greedily"):
        lm.generate_until([sampled], disable_tqdm=True)
    with pytest.raises(NotImplementedError):
        lm.loglikelihood_rolling([])
