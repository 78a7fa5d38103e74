"""What all pages share: templates that escape whatever they are given, and data that scripts can read but not run."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.files import finite
from orchestrator.pages.figures import Answered, vega
from orchestrator.terminal import visible

_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""What could end a script element, in JSON's own notation."""


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file."""
    return _environment().get_template(template).render(**values)


def embedded(value: Any) -> Markup:
    """JSON to put into a script element: no text in it can end the element. What is no finite number is null."""
    return Markup(json.dumps(finite(value), allow_nan=False, separators=(",", ":")).translate(_ESCAPES))


def packed(array: npt.NDArray[Any]) -> str:
    """An array as base64 of its bytes, little-endian, for a typed array of a script."""
    return base64.b64encode(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).decode()


def script(name: str) -> Markup:
    """One of our own scripts or style sheets, to stand in a page as it is."""
    return Markup((resources.files("orchestrator.pages") / "templates" / name).read_text("utf-8"))


def specs(answers: Iterable[Answered]) -> dict[str, Any]:
    """What the charts of a page draw, by the names of their figures."""
    return {one.figure.key: one.spec for one in answers if one.spec is not None}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(script=script, embedded=embedded, vega=vega, specs=specs)
    environment.filters.update(visible=visible)
    return environment
