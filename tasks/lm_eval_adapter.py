"""Tasks of published suites: rows from staged files; prompts, limits, stops and metrics from lm-eval, never copied.

The library is asked for one task at a time, by its own YAML file: its registry of 13,000 tasks takes 14 seconds to
scan, and its module for RULER downloads at import. What is worked around, in lm-eval 0.4.13:

* LongBench's templates call the question ``question``; the original rows, ``input``;
* InfiniteBench's columns are declared in a way that ``datasets`` cannot read, and four of its splits are misnamed;
* RULER's scores come under the context length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import choubun
from tasks.errors import TaskError
from tasks.libraries import library
from tasks.profiles import CODE_TASKS, FEW_SHOT_TASKS, Config, Profile, apply_profile
from tasks.rows import Row, first_row, load_rows
from tasks.sources import StagedTask, data_root, how_to_stage, locate
from tasks.splits import split_rows
from tasks.suites import Suite, check_task, suite_named
from tasks.task import CompletionExample, Split

if TYPE_CHECKING:
    import datasets
    from lm_eval.api.task import ConfigurableTask

MERGED_CHARACTERS = 30
"""A context that begins as the prompt does, for so many characters, has the prompt merged in."""


@dataclass(frozen=True)
class SuiteTask:
    """One task of a published suite, as ``tasks.task.CompletionTask`` describes it.

    Rows are read when the first example is asked for.
    """

    name: str
    suite: Suite
    task: str
    """The task's name in the suite."""
    config: Config
    """lm-eval's configuration of the task, under the profile."""
    score_name: str
    """The one of lm-eval's scores that counts."""
    staged: StagedTask

    @property
    def max_new_tokens(self) -> int:
        """Tokens of a completion, at most."""
        return int(self.config["generation_kwargs"]["max_gen_toks"])

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a completion."""
        return tuple(self.config["generation_kwargs"]["until"])

    @property
    def is_chat(self) -> bool:
        """Whether a chat template may be put around a prompt: not around an unfinished example, and not around code."""
        return self.task not in FEW_SHOT_TASKS | CODE_TASKS

    def num_examples(self, split: Split) -> int:
        """How many rows the split has.

        Raises:
            TaskError: none, as may happen where there are few rows; or the rows cannot be read.
        """
        if not self._splits[split]:
            raise TaskError(
                f"{self.name} has {len(self.rows)} rows, of which none falls into the {split} split (one in four by "
                f"its id's hash is held out): stage more rows; {how_to_stage(self.suite, self.staged.root)}"
            )
        return len(self._splits[split])

    def example(self, split: Split, index: int) -> CompletionExample:
        """The example at ``index`` of ``split``.

        Raises:
            TaskError: there are not so many.
        """
        row = self.row(split, index)
        return CompletionExample(
            task=self.name,
            split=split,
            index=index,
            prompt=self._prompt(row),
            answers=self._answers(row),
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            is_chat=self.is_chat,
        )

    def score(self, example: CompletionExample, completion: str) -> float:
        """lm-eval's score of a completion, 0 to 1.

        Args:
            example: one of this task's.
            completion: what the model said, cut before the first stop text.
        """
        row = self.row(example.split, example.index)
        return float(self.lm_eval_task.process_results(row, [completion])[self.score_name])

    def row(self, split: Split, index: int) -> Row:
        """The row behind an example, with lm-eval's names of the columns.

        Raises:
            TaskError: there are not so many.
        """
        if not 0 <= index < self.num_examples(split):
            raise TaskError(f"{self.name} has {self.num_examples(split)} {split} examples, and none at {index}")
        row: Row = self.rows[self._splits[split][index]]
        return row

    def row_numbers(self, split: Split) -> tuple[int, ...]:
        """Place in ``rows`` of each example of a split, as ``samples`` of ``lm_eval.simple_evaluate`` has them."""
        return self._splits[split]

    @cached_property
    def rows(self) -> datasets.Dataset:
        """All rows in the order of the file, with lm-eval's names of the columns."""
        rows = load_rows(self.staged)
        return rows.rename_columns(_renamed(self.suite))

    @cached_property
    def lm_eval_task(self) -> ConfigurableTask:
        """The library's own task over all rows, for example for ``lm_eval.simple_evaluate``."""
        from lm_eval.api.task import ConfigurableTask

        rows = self.rows

        class StagedConfigurableTask(ConfigurableTask):  # type: ignore[misc]  # lm_eval is untyped
            """Has its rows already."""

            def download(self, *_args: object, **_options: object) -> None:
                self.dataset = {"test": rows}

        return StagedConfigurableTask(config=dict(self.config))

    @cached_property
    def _splits(self) -> Mapping[Split, tuple[int, ...]]:
        column = self.suite.id_column
        ids = None if column is None else [str(name) for name in self.rows[column]]
        return split_rows(self.suite.kind, self.task, ids, len(self.rows))

    def _prompt(self, row: Row) -> str:
        task = self.lm_eval_task
        return str(task.fewshot_context(doc=row, num_fewshot=0, gen_prefix=task.doc_to_prefix(row)))

    def _answers(self, row: Row) -> tuple[str, ...]:
        answers = tuple(row[self.suite.answers])
        if self.task in self.suite.choice_tasks and answers[0] in row["options"]:
            return (chr(ord("A") + row["options"].index(answers[0])),)
        return answers


def suite_task(
    name: str, *, kind: str, task: str, profile: Profile = "lm_eval", data: str | None = None, length: int | None = None
) -> SuiteTask:
    """A task of a suite, over its staged rows. Looks at the first of them, and reads the others when they are needed.

    Args:
        name: in tables and files.
        kind: the suite.
        task: the task's name in the suite.
        profile: ``lm_eval`` or ``paper``.
        data: folder that suites are staged in; None for the default.
        length: RULER's context length in tokens; None for other suites.

    Raises:
        TaskError: no such task; not staged, or not what was staged; the prompt is merged into the rows; a package is
            missing, or one is installed that changes a metric.
    """
    suite = suite_named(kind)
    check_task(suite, task, length)
    staged = locate(suite, task, length, data_root(data))
    config = apply_profile(library_config(suite, task), profile, suite.kind, task)
    row = first_row(staged)
    score_name = "score"
    if suite.needs_length:
        score_name = str(row["max_length"])
        config = {**config, "metric_list": [{"metric": score_name, "aggregation": "mean", "higher_is_better": True}]}
    refuse_merged(suite, config, row, staged.place)
    return SuiteTask(name=name, suite=suite, task=task, config=config, score_name=score_name, staged=staged)


def metric_name(config: Config) -> str:
    """What scores, as the library's function is called."""
    name = str(config["process_results"].__name__).strip("_")
    stem = name.removeprefix("get_").removeprefix("process_results").removesuffix("_with_score")
    return stem.strip("_") or "match"


def library_config(suite: Suite, task: str) -> Config:
    """lm-eval's configuration of a task, without its data set.

    Raises:
        TaskError: a package is missing, or one is installed that changes a metric.
    """
    if suite.kind == "choubun":
        library("lm_eval.tasks.longbench.metrics")
        library("fugashi", extra="choubun")
        return choubun.config(task)
    loader = library("lm_eval.tasks._yaml_loader")
    folder = Path(str(loader.__file__)).parent / suite.folder
    raw = loader.load_yaml(folder / f"{_yaml_name(suite, task)}.yaml", resolve_func=False)
    config = {key: value for key, value in raw.items() if key not in _DATA_KEYS}
    for key in ("doc_to_text", "process_results"):
        config[key] = _resolved(config[key], folder)
    return {**config, "test_split": "test"}


_DATA_KEYS = frozenset({"dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "tag"})


def _yaml_name(suite: Suite, task: str) -> str:
    match suite.kind:
        case "longbench_e":
            return f"{task}_e"
        case "infinitebench":  # lm-eval says ``_en`` where the data set says ``_eng``
            return f"infinitebench_{task.removesuffix('g') if task.endswith('_eng') else task}"
    return task


def _resolved(value: str, folder: Path) -> Any:
    """The function that a YAML file names, imported alone: RULER's files name others, which download when imported."""
    if not value.startswith(f"{folder}/"):
        return value
    module, _, function = value.removeprefix(f"{folder}/").rpartition(".")
    return getattr(library(f"lm_eval.tasks.{folder.name}.{module}"), function)


def refuse_merged(suite: Suite, config: Config, row: Row, place: str) -> None:
    """Refuses rows whose context begins as the prompt does.

    Args:
        suite: the suite.
        config: the task's configuration.
        row: one row, with the suite's columns.
        place: what messages call it.

    Raises:
        TaskError: the prompt would stand there twice.
    """
    if "context" not in row:
        return
    from lm_eval.utils import apply_template

    marker = "\N{OBJECT REPLACEMENT CHARACTER}"
    marked = {_renamed(suite).get(key, key): value for key, value in {**row, "context": marker}.items()}
    template = config["doc_to_text"]
    prompt = template(marked) if callable(template) else apply_template(template, marked)
    beginning = f"{config.get('description', '')}{prompt}".partition(marker)[0][:MERGED_CHARACTERS]
    if beginning and row["context"].startswith(beginning):
        raise TaskError(
            f"{place}: the context begins with the prompt itself ({beginning!r}), which would then stand there twice; "
            f"stage {suite.hub_id or suite.title} itself, not a data set derived from it"
        )


def _renamed(suite: Suite) -> dict[str, str]:
    """New names of columns by old ones."""
    return {"input": "question"} if suite.folder == "longbench" else {}
