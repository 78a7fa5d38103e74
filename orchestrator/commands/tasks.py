"""What ``namm tasks`` does: list, show, download and make up the tasks of published suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import RenderableType

from orchestrator.files import make_folder, require_writable_folder
from orchestrator.terminal import Answer, facts, grid, visible
from tasks.documents import count_pieces
from tasks.errors import TaskError
from tasks.fetching import fetch as fetch_suite
from tasks.lm_eval_adapter import library_config, metric_name
from tasks.registry import SuiteTaskSettings, build_task
from tasks.sources import Manifest, data_root, how_to_stage, read_manifest
from tasks.suites import SUITES, Suite, suite_named
from tasks.task import CompletionExample, Split
from workers.language_model import load_tokenizer
from workers.prompts import PromptEncoder
from workers.settings import ModelSettings, PromptSettings

HEAD_CHARACTERS = 1_200
"""Shown of a long prompt, at its beginning and at its end."""


# --- list -------------------------------------------------------------------------------------------------------------


def list_tasks(name: str | None, *, data: str | None) -> Answer:
    """Which suites and tasks there are, and what of them is staged.

    Args:
        name: of a suite; None for all.
        data: folder that suites are staged in; None for the default.

    Raises:
        TaskError: there is no such suite, or a manifest cannot be read.
    """
    root = data_root(data)
    suites = [suite_named(name)] if name else list(SUITES.values())
    listed = [_listed(suite, root) for suite in suites]
    document = {"data": str(root), "suites": listed}
    pairs = [("suites are staged in", str(root))]
    for suite, entry in zip(suites, listed, strict=True):
        pairs.append((suite.title, f"{_origin(entry['staged'])}; {suite.hub_id or 'not on the hub'}; {suite.licence}"))
    headings = ("task", "scored by", "new tokens", "rows on the hub", "lengths staged")
    parts: list[RenderableType] = [facts(pairs), "", grid(headings, list(_task_rows(listed)), left=2)]
    if hint := next((entry["hint"] for entry in listed if entry["hint"]), None):
        parts += ["", hint]
    if not all(entry["staged"] for entry in listed):
        suite = next(suite for suite, entry in zip(suites, listed, strict=True) if not entry["staged"])
        parts += ["", how_to_stage(suite, root)]
    return Answer(document, parts)


def _listed(suite: Suite, root: Path) -> dict[str, Any]:
    manifest = read_manifest(root / suite.folder)
    staged = None
    if manifest is not None:
        staged = {"origin": manifest.origin, "id": manifest.id, "revision": manifest.revision}
    entry: dict[str, Any] = {
        "suite": suite.kind,
        "title": suite.title,
        "hub_id": suite.hub_id,
        "licence": suite.licence,
        "staged": staged,
        "hint": None,
        "tasks": [],
    }
    for task, num_rows in suite.num_rows.items():
        scoring: dict[str, Any] = {"metric": None, "max_new_tokens": None}
        try:
            config = library_config(suite, task)
            scoring = {
                "metric": metric_name(config),
                "max_new_tokens": config["generation_kwargs"]["max_gen_toks"],
            }
        except TaskError as error:  # the list is of use without the library as well
            entry["hint"] = str(error)
        lengths = _lengths(task, manifest) if suite.needs_length else None
        entry["tasks"].append({"task": task, **scoring, "rows": num_rows, "lengths": lengths})
    return entry


def _lengths(task: str, manifest: Manifest | None) -> list[int]:
    """Context lengths that are staged of a task."""
    if manifest is None:
        return []
    stems = [Path(name).stem.removeprefix(f"{task}-") for name in manifest.files if name.startswith(f"{task}-")]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _origin(staged: Mapping[str, str] | None) -> str:
    if staged is None:
        return "not staged"
    if staged["origin"] == "hub":
        return f"staged from the hub at {staged['revision'][:8]}"
    return f"staged: made up ({staged['revision']})"


def _task_rows(listed: list[dict[str, Any]]) -> Iterator[list[str]]:
    for entry in listed:
        for task in entry["tasks"]:
            lengths = " ".join(map(str, task["lengths"])) if task["lengths"] else ""
            yield [
                f"{entry['suite']}/{task['task']}",
                task["metric"] or "-",
                str(task["max_new_tokens"] or "-"),
                str(task["rows"] or "-"),
                lengths,
            ]


# --- show -------------------------------------------------------------------------------------------------------------


def show(
    name: str,
    *,
    data: str | None,
    profile: str,
    split: Split,
    index: int,
    length: int | None,
    model: str | None,
    full: bool,
) -> Answer:
    """One example of a task as a model sees it.

    Args:
        name: suite and task, as ``longbench/qasper``.
        data: folder that suites are staged in; None for the default.
        profile: ``lm_eval`` or ``paper``.
        split: of the rows.
        index: of the example in the split.
        length: context length in tokens, for RULER.
        model: name, folder or hub id (``ID@COMMIT``) whose tokenizer counts; None not to count.
        full: show all of a long prompt.

    Raises:
        TaskError: no such task or example, or it is not staged.
        ModelError: the tokenizer cannot be loaded.
    """
    kind, slash, task = name.partition("/")
    if not slash:
        raise TaskError(f"{name!r} names no task: write it as SUITE/TASK, like longbench/qasper")
    settings = SuiteTaskSettings(
        kind=suite_named(kind).kind,
        task=task,
        profile="paper" if profile == "paper" else "lm_eval",
        data=data,
        length=length,
    )
    built = build_task(settings)
    example = built.example(split, index)
    assert isinstance(example, CompletionExample)  # settings of a suite make no other
    document: dict[str, Any] = {
        "task": example.task,
        "profile": profile,
        "split": split,
        "index": index,
        "examples": built.num_examples(split),
        "prompt": example.prompt,
        "answers": list(example.answers),
        "max_new_tokens": example.max_new_tokens,
        "stop": list(example.stop),
        "is_chat": example.is_chat,
        "tokens": tokens(example, model) if model else None,
    }
    return Answer(document, _shown(document, full=full))


def tokens(example: CompletionExample, model: str) -> dict[str, int]:
    """Tokens that a model reads of an example's prompt, and those cut out of its middle to make room.

    Raises:
        ModelError: the tokenizer cannot be loaded.
        PromptError: the model's window is too short even for the completion.
    """
    path_or_id, _, revision = model.partition("@")
    tokenizer, window = load_tokenizer(ModelSettings(path_or_id=path_or_id, revision=revision or None))
    encoded = PromptEncoder(tokenizer, window, PromptSettings(truncation="middle")).prompt(example)
    return {"prompt": encoded.prompt_tokens, "cut": encoded.num_cut_tokens, "window": window}


def _shown(document: Mapping[str, Any], *, full: bool) -> list[RenderableType]:
    stops = ", ".join(map(repr, document["stop"]))
    pairs = [
        ("example", f"{document['index']} of {document['examples']:,} in {document['split']}"),
        *(("answer", repr(answer)) for answer in document["answers"]),
        ("completion", f"at most {document['max_new_tokens']:,} tokens"),
        ("ends at", f"the end-of-sequence token{f', {stops}' if stops else ''}"),
        ("chat template", "may be put around it" if document["is_chat"] else "never: this is text to go on with"),
        ("prompt", f"{len(document['prompt']):,} characters{_tokens_told(document['tokens'])}"),
    ]
    return [facts(pairs), "", visible(document["prompt"] if full else _head_and_tail(document["prompt"]))]


def _tokens_told(counted: Mapping[str, int] | None) -> str:
    if counted is None:
        return ""
    cut = f", {counted['cut']:,} more are cut out of the middle" if counted["cut"] else ", nothing is cut"
    return f", {counted['prompt']:,} tokens in a window of {counted['window']:,}{cut}"


def _head_and_tail(text: str) -> str:
    hidden = len(text) - 2 * HEAD_CHARACTERS
    if hidden <= 0:
        return text
    return f"{text[:HEAD_CHARACTERS]}\n[… {hidden:,} characters, shown by --full …]\n{text[-HEAD_CHARACTERS:]}"


# --- fetch, generate --------------------------------------------------------------------------------------------------


def fetch(name: str, *, to: Path, revision: str | None, offline: bool, stream: TextIO, quiet: bool) -> Answer:
    """Stage a suite from the hub.

    Args:
        name: of the suite.
        to: the folder to stage it in.
        revision: branch, tag or commit; None for what is staged, or else the newest.
        offline: take the files that are there.
        stream: told what is going on.
        quiet: tell nothing.

    Raises:
        TaskError: the hub has no such suite, does not answer or sent something else.
    """

    def say(line: str) -> None:
        if not quiet:
            print(line, file=stream, flush=True)

    manifest, is_new = fetch_suite(suite_named(name), to, revision=revision, offline=offline, say=say)
    return _staged(manifest, to, "staged" if is_new else "was staged already, and is intact")


def generate(
    name: str,
    *,
    to: Path,
    seed: int,
    num_rows: int,
    length: int,
    model: str | None,
    corpus: Path | None = None,
    in_words: bool = False,
) -> Answer:
    """Make up a suite's files.

    Args:
        name: of the suite.
        to: the folder to stage it in.
        seed: of all that is drawn.
        num_rows: rows of each task.
        length: of a context, in tokens.
        model: whose tokenizer counts; None to count pieces of words, roughly.
        corpus: folder of text; None for what comes with Python.
        in_words: write what can be in the small Llama's words.

    Raises:
        TaskError: the folder holds files from the hub, or a package is missing.
        StorageError: the folder may not be written.
        ModelError: the tokenizer cannot be loaded.
    """
    from tasks.writers import write_suite

    suite = suite_named(name)
    present = read_manifest(to / suite.folder)
    if present is not None and present.origin == "hub":
        raise TaskError(f"{to / suite.folder} holds files from the hub: choose another folder")
    require_writable_folder(to / suite.folder)
    make_folder(to)
    sizes = {"seed": seed, "num_rows": num_rows, "target_tokens": length}
    write_suite(name, to, **sizes, count_tokens=counter(model), corpus=corpus, in_words=in_words)
    manifest = read_manifest(to / suite.folder)
    assert manifest is not None  # written last
    return _staged(manifest, to, "made up")


def counter(model: str | None) -> Callable[[str], int]:
    """Counts a text's tokens; without a model about what a byte-pair tokenizer would make of it.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    if model is None:
        return count_pieces
    path_or_id, _, revision = model.partition("@")
    tokenizer, _ = load_tokenizer(ModelSettings(path_or_id=path_or_id, revision=revision or None))
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _staged(manifest: Manifest, root: Path, how: str) -> Answer:
    num_bytes = sum(file.bytes for file in manifest.files.values())
    num_rows = sum(file.rows for file in manifest.files.values())
    document = {
        "suite": manifest.suite,
        "folder": str(root / manifest.suite),
        "origin": manifest.origin,
        "id": manifest.id,
        "revision": manifest.revision,
        "files": len(manifest.files),
        "bytes": num_bytes,
        "rows": num_rows,
        "how": how,
    }
    pairs = [
        (manifest.suite, how),
        ("folder", str(document["folder"])),
        ("from", f"{manifest.id}, {manifest.revision}"),
        ("holds", f"{num_rows:,} rows in {len(manifest.files):,} files, {num_bytes / 1e6:,.1f} MB"),
        ("to use it", f"data: {root} in a task's settings, or NAMM_TASKS={root}"),
    ]
    return Answer(document, [facts(pairs)])
