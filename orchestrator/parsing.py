"""How the ``namm`` command understands arguments: mistakes in one line, nothing abbreviated, defaults shown."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

from orchestrator.credentials import without_credentials
from orchestrator.errors import NammError

DEBUG_VARIABLE = "NAMM_DEBUG"
"""Environment variable that does what ``--debug`` does, and lets the warnings of libraries through."""

DAY_SECONDS = 86_400

Commands = argparse._SubParsersAction  # argparse has no public name for it


class Parser(argparse.ArgumentParser):
    """Mistakes are told in one line; nothing may be abbreviated, so that options can be added later."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        self.exit(
            NammError.exit_code, f"namm: error: {without_credentials(message)}; {self.prog} --help says what there is\n"
        )


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = action.option_strings and action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if has_default else action.help or ""


def add_modes(parser: argparse.ArgumentParser, *, quiet: str | None, command: str) -> None:
    """What all commands share; ``quiet`` is for those that take long."""
    if quiet:
        parser.add_argument("--quiet", action="store_true", help=quiet)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument(
        "--debug", action="store_true", help=f"show the traceback of an error as well (also {DEBUG_VARIABLE}=1)"
    )
    parser.set_defaults(command=command)


def add_model(parser: Parser) -> None:
    """Which model reads, and where."""
    parser.add_argument(
        "--model",
        help="small-llama, a folder in Hugging Face format, or a hub id with its commit, ID@COMMIT "
        "(default: the one that the memory was evolved on)",
    )
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1: got {text!r}")
    return int(text)


def pause(text: str) -> int:
    """A whole number of seconds, at least 1 and at most a day."""
    if not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= DAY_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a whole number of seconds from 1 to {DAY_SECONDS}: got {text!r}")
    return int(text)


def ratio(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 < number <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1: got {text!r}")
    return number
