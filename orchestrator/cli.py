"""The ``namm`` command, also ``python -m orchestrator``: arguments in, an exit code out; ``commands`` does the work.

Results go to standard output, progress and messages to standard error. Exit codes: 0; 2 when the user can mend the
cause, told in one line; 1 when the run itself failed; 130 and 143 when interrupted (Ctrl-C, SIGTERM).

Libraries are imported by the commands that need them, so that ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from orchestrator.arguments import parse
from orchestrator.credentials import without_credentials
from orchestrator.errors import InputError, NammError
from orchestrator.parsing import DEBUG_VARIABLE
from tasks.errors import TaskError
from workers.errors import ModelError, PromptError
from workers.memory.errors import DialError, MemoryFileError, UnsupportedUseError

if TYPE_CHECKING:
    from orchestrator.terminal import Answer

EXPECTED_ERRORS = (NammError, ModelError, MemoryFileError, UnsupportedUseError, DialError, TaskError, PromptError)
"""What is told in one line; anything else is a fault of ours and keeps its traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Raises:
        SystemExit: after ``--help`` and ``--version`` (0) and for arguments that cannot be understood (2).
    """
    arguments = parse(argv)
    try:
        with _quiet_libraries(), _sigterm_interrupts(), redirect_stdout(sys.stderr):
            answer = COMMANDS[arguments.command](arguments)
    except EXPECTED_ERRORS as error:
        if arguments.debug or os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        print(f"namm: error: {without_credentials(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code if isinstance(error, NammError) else NammError.exit_code
    except KeyboardInterrupt as interruption:
        print("; ".join(("namm: interrupted", *getattr(interruption, "__notes__", ()))), file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(interruption, _Terminated) else signal.SIGINT)
    return _say(answer, as_json=arguments.json)


def _evolve(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.evolve import evolve

    preset, overrides = _preset_and_settings(arguments.words)
    return evolve(
        preset=preset,
        overrides=overrides,
        folder=arguments.run_folder,
        takeover=arguments.takeover,
        quiet=arguments.quiet or arguments.json,
    )


def _resume(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.evolve import resume

    folder, settings = _one_and_settings(arguments.words, "a run folder")
    return resume(
        folder=folder,
        overrides=[*settings, *_settings(search__generations=arguments.generations)],
        takeover=arguments.takeover,
        quiet=arguments.quiet or arguments.json,
    )


def _submit(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.submit import submit

    preset, overrides = _preset_and_settings(arguments.words)
    return submit(
        preset=preset,
        overrides=overrides,
        run_folder=arguments.run_folder,
        address=arguments.address,
        submission_id=arguments.submission_id,
        takeover=arguments.takeover,
        follow=arguments.follow,
        quiet=arguments.json,
    )


def _status(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.status import status

    return status(arguments.folder)


def _evaluate(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.evaluate import Request, evaluate
    from orchestrator.commands.tasks_named import overrides_for

    options = _settings(
        evaluation__lengths=_list(arguments.lengths),
        evaluation__rivals=_list(arguments.rivals),
        examples__heldout=arguments.examples,
        fitness__score=arguments.score,
        model__path_or_id=arguments.model and arguments.model.partition("@")[0],
        model__revision=arguments.model and (arguments.model.partition("@")[2] or "null"),
    )
    what, words = _sorted(arguments.words)
    asked = overrides_for(arguments.tasks, data=arguments.data, profile=arguments.profile) if arguments.tasks else []
    return evaluate(
        Request(
            what=tuple(what),
            preset=arguments.preset,
            overrides=(*asked, *words, *options),
            kept_ratio=arguments.kept_ratio,
            split=arguments.split,
            folder=arguments.folder,
            output=arguments.output,
            form=arguments.format,
            quiet=arguments.quiet or arguments.json,
        )
    )


def _transfer(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.transfer import Request, rivals_named, transfer
    from orchestrator.transfer import STATISTICS, Wanted

    memory, settings = _one_and_settings(arguments.words, "a saved memory or run folder")
    return transfer(
        Request(
            memory=memory,
            to=tuple(arguments.to.split(",")),
            wanted=Wanted(
                tasks=arguments.tasks,
                data=arguments.data,
                examples=arguments.examples,
                rivals=rivals_named(arguments.rivals),
                preset=arguments.preset,
                other_version=arguments.other_version,
                max_steps=arguments.max_steps,
                overrides=tuple(settings),
            ),
            statistics=STATISTICS if arguments.statistics == "both" else (arguments.statistics,),
            output=arguments.output,
            form=arguments.format,
            quiet=arguments.quiet or arguments.json,
        )
    )


def _generate(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.generate import generate

    return generate(
        arguments.memory,
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        prompt=arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        show=arguments.show,
    )


def _explain(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.explain import Request, explain

    return explain(
        Request(
            memory=arguments.memory,
            model=arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            text=arguments.text,
            language=None if arguments.language == "auto" else arguments.language,
            kept_ratio=arguments.kept_ratio,
            folder=arguments.folder,
        )
    )


def _kinds(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.kinds import Request, kinds

    return kinds(
        Request(
            memory=arguments.memory,
            model=arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            texts=tuple(arguments.text),
            language=None if arguments.language == "auto" else arguments.language,
            examples=arguments.examples,
            folder=arguments.folder,
        )
    )


def _inspect(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.inspect import inspect

    return inspect(arguments.what)


def _query(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.query import query

    return query(arguments.folder, arguments.sql, arguments.format)


def _report(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.report_page import report

    return report(
        arguments.folder,
        output=arguments.output,
        pdf=arguments.pdf,
        trace=arguments.trace,
        device=arguments.device,
    )


def _store(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands import store

    return {"describe": store.describe, "compact": store.compact}[arguments.action](arguments.folder)


def _compare(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.compare import compare

    return compare(arguments.folders, output=arguments.output)


def _watch(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.watch import watch

    return watch(arguments.folder, seconds=arguments.every, stream=sys.stderr)


def _track(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.track import track

    return track(
        arguments.folder,
        uri=arguments.uri,
        experiment=arguments.experiment,
        stream=sys.stderr,
        quiet=arguments.json,
    )


def _convert(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.convert import convert

    return convert(arguments.source, arguments.to)


def _doctor(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands.doctor import doctor

    return doctor(arguments.model, memory=arguments.memory)


def _tasks(arguments: argparse.Namespace) -> Answer:
    from orchestrator.commands import tasks

    match arguments.action:
        case "list":
            return tasks.list_tasks(arguments.suite, data=arguments.data)
        case "show":
            return tasks.show(
                arguments.task,
                data=arguments.data,
                profile=arguments.profile,
                split=arguments.split,
                index=arguments.index,
                length=arguments.length,
                model=arguments.model,
                full=arguments.full,
            )
        case "fetch":
            return tasks.fetch(
                arguments.suite,
                to=arguments.to,
                revision=arguments.revision,
                offline=arguments.offline,
                stream=sys.stderr,
                quiet=arguments.json,
            )
    return tasks.generate(
        arguments.suite,
        to=arguments.to,
        seed=arguments.seed,
        num_rows=arguments.rows,
        length=arguments.length,
        model=arguments.model,
        corpus=arguments.corpus,
        in_words=arguments.in_words,
    )


COMMANDS: Mapping[str, Callable[[argparse.Namespace], Answer]] = {
    "evolve": _evolve,
    "resume": _resume,
    "submit": _submit,
    "status": _status,
    "evaluate": _evaluate,
    "transfer": _transfer,
    "generate": _generate,
    "explain": _explain,
    "kinds": _kinds,
    "inspect": _inspect,
    "query": _query,
    "report": _report,
    "store": _store,
    "compare": _compare,
    "watch": _watch,
    "track": _track,
    "tasks": _tasks,
    "doctor": _doctor,
    "convert": _convert,
}


def _preset_and_settings(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The preset or file, ``small`` if none was given, and the settings that differ from its."""
    names, settings = _sorted(words)
    return (names or ["small"])[0], [*names[1:], *settings]


def _one_and_settings(words: Sequence[str], what: str) -> tuple[str, Sequence[str]]:
    """The one word that is no setting, and the settings before and after it."""
    names, settings = _sorted(words)
    if len(names) != 1:
        raise InputError(f"name {what}, one, beside settings like key=value: got {' '.join(names) or 'settings alone'}")
    return names[0], settings


def _sorted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is no setting, and what is one; they may stand in any order."""
    names = [word for word in words if not _is_setting(word)]
    return names, [word for word in words if _is_setting(word)]


def _is_setting(word: str) -> bool:
    """Whether it is ``key=value``, and neither an address nor a path that holds an equals sign."""
    return re.match(r"[\w.-]+=", word) is not None and not os.path.exists(word)


def _list(text: str | None) -> str | None:
    """A list as YAML has it, from ``a,b`` or ``none``."""
    if text is None:
        return None
    return f"[{'' if text == 'none' else text}]"


def _settings(**values: object) -> list[str]:
    """Overrides from options that were given; ``a__b`` stands for the key ``a.b``."""
    return [f"{name.replace('__', '.')}={value}" for name, value in values.items() if value is not None]


# --- the process ------------------------------------------------------------------------------------------------------


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what a cluster manager sends before it kills."""


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, through every ``finally``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Warnings of libraries are for us, not for users; ``NAMM_DEBUG=1`` shows them."""
    with warnings.catch_warnings():
        if not os.environ.get(DEBUG_VARIABLE):
            warnings.simplefilter("ignore")
        yield


def _say(answer: Answer, *, as_json: bool) -> int:
    from orchestrator.terminal import render

    text = f"{json.dumps(answer.document, indent=2)}\n" if as_json else render(answer.parts, sys.stdout)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has seen enough. Python flushes once more at exit, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0
