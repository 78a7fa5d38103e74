"""The report of a run: follow the tokens of held-out examples, write the journal as tables, make the page.

All of it can be done again at any time from the run folder; nothing here decides anything about the run.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import torch

from orchestrator.analysis.forgetting import TextToRead, forgetting
from orchestrator.analysis.queries import EXTRA, database, is_installed, write_journal_tables
from orchestrator.config import RunConfig, config_from_dict
from orchestrator.errors import InputError, StorageError
from orchestrator.history import read_journal
from orchestrator.pages.report import report_page
from orchestrator.readiness import available
from orchestrator.run import CHAMPION, evaluation_tasks
from orchestrator.storage import Folder, local_copy
from orchestrator.store import TABLES, Store
from orchestrator.tracked import settings_file
from tasks.documents import CountTokens
from tasks.registry import TaskSettings, build_task
from tasks.token_kinds import Language
from workers.language_model import load_language_model, model_folder
from workers.memory.pretrained import PretrainedMemory
from workers.settings import ModelSettings

Trace = Literal["auto", "always", "never"]
SMALL_BYTES = 1_000_000_000
"""A model of at most this many bytes of weights is loaded here without being asked for."""

_logger = logging.getLogger(__name__)


def make_report(folder: Folder, *, trace: Trace, model: ModelSettings | None = None) -> str:
    """Make the page of a run; returns it as HTML.

    Args:
        folder: the run folder.
        trace: whether to load the model and follow the tokens of some examples; ``auto`` does so where that was not
            done yet and the model is a small one on this machine.
        model: what to load in place of the run's own model settings.

    Raises:
        InputError: a library of the extra ``analysis`` is not installed.
        RunFolderError: no generation has ended yet, or the tables were written by another version.
    """
    require_libraries()
    contents = read_journal(folder)
    config = config_from_dict(contents.attempts[-1].config)
    store = Store(folder)
    settings = model or config.model
    if folder.exists(f"{CHAMPION}/config.json") and _is_to_be_traced(folder, settings, trace):
        trace_run(folder, store, config, settings)
    if contents.generations:
        try:
            write_journal_tables(store, folder)
        except StorageError as error:  # for others: the page makes them for itself
            _logger.warning("the page is made without them: %s", error)
    with database(folder) as tables:
        return report_page(tables, run=folder.name, settings_file=settings_file(contents.attempts[-1].config))


def require_libraries() -> None:
    """Make sure that the extra is installed.

    Raises:
        InputError: it is not.
    """
    if not is_installed() or find_spec("vl_convert") is None:
        raise InputError(f"a report needs DuckDB and Vega-Lite, which are not installed: {EXTRA}")


def _is_to_be_traced(folder: Folder, model: ModelSettings, trace: Trace) -> bool:
    if trace != "auto":
        return trace == "always"
    return not folder.exists(f"{TABLES}/survival.parquet") and is_small(model)


def on_this_machine(model: ModelSettings) -> ModelSettings:
    """The same model without an accelerator, which the driver of a run may not have."""
    return dataclasses.replace(model, device="cpu", max_memory=None)


def is_small(model: ModelSettings) -> bool:
    """Whether a model lies on this machine and takes little room."""
    if model.quantization is not None:
        return False
    place = model_folder(model.path_or_id)
    return place is not None and sum(file.stat().st_size for file in place.glob("*.safetensors")) <= SMALL_BYTES


def trace_run(folder: Folder, store: Store, config: RunConfig, model: ModelSettings) -> None:
    """Follow the tokens of held-out examples under the champion and its rivals, and write what came of them.

    Raises:
        ModelError: the model cannot be loaded.
        StorageError: the tables cannot be written.
    """
    with local_copy(folder.within(CHAMPION)) as saved:
        memory = PretrainedMemory.from_pretrained(saved)
    language_model = load_language_model(model)
    texts = [
        text
        for text in held_out_texts(evaluation_tasks(config), config.report.traced_examples, language_model.count_tokens)
        if len(language_model.prompt_ids(text.text)) <= language_model.max_tokens
    ]
    if not texts:
        _logger.warning("no held-out example fits the model's window: none is followed token by token")
        return
    with one_thread():
        found = forgetting(language_model, memory, texts, config.seed)
    for name in ("survival", "traces", "traced_tokens"):
        store.write_table(name, getattr(found, name))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: short texts gain nothing from more, and lose much where workers share the machine."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def held_out_texts(
    tasks: Sequence[TaskSettings], most: int, count_tokens: CountTokens, language: Language | None = None
) -> list[TextToRead]:
    """Prompts of the first held-out examples of every task; their language is guessed where it is None.

    ``count_tokens`` is the model's, by which documents over real text are cut.
    """
    examples = available(tasks, "heldout", most)
    built = {settings.name: build_task(settings, count_tokens) for settings in tasks}
    return [
        TextToRead.of(name, index, built[name].example("heldout", index).prompt, language)
        for name, indices in examples.items()
        for index in indices
    ]
