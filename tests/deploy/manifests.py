"""Reads what is in deploy/ and the schemas that it must fit."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonschema.validators import validator_for
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DATA = Path(__file__).parent / "data"
README = DEPLOY / "README.md"

IMAGE = "registry.example.com/namm"
"""Stands for the user's registry; example.com belongs to nobody."""


def load(name: str) -> Any:
    """A YAML file of deploy/, anchors and merge keys resolved."""
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def complaints(document: Any, schema: str, definition: str | None = None) -> list[str]:
    """What a published schema has against a document: one line each, with the place.

    Args:
        document: as YAML gave it.
        schema: a file in tests/deploy/data.
        definition: the part of the schema that describes the document; None for the whole.
    """
    target = {"$ref": f"{schema}#/$defs/{definition}"} if definition else {"$ref": schema}
    return _complaints(document, {"$schema": _schemas()[schema]["$schema"], **target})


def complaints_of_ray_up(document: Any) -> list[str]:
    """The same for `ray up`, whose schema ships with Ray; Ray itself is not imported, that takes seconds."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    return _complaints(document, json.loads(path.read_text(encoding="utf-8")))


def _complaints(document: Any, schema: dict[str, Any]) -> list[str]:
    registry = Registry().with_resources((name, Resource.from_contents(part)) for name, part in _schemas().items())
    errors = validator_for(schema)(schema, registry=registry).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


@cache
def _schemas() -> dict[str, Any]:
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in DATA.glob("*.json")}


@cache
def pinned() -> dict[str, str]:
    """Library -> version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@cache
def project_version() -> str:
    """The version of this package."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def text_files() -> list[Path]:
    """Every file of deploy/ that git would keep, less the presets."""
    return [
        path
        for path in sorted(DEPLOY.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and path.name != ".env" and "presets" not in path.parts
    ]


def readme_commands(section: str | None = None) -> list[str]:
    """The command lines of deploy/README.md, in order; a line that ends in ``\\`` is joined with the next.

    Args:
        section: heading of one section, like ``AWS``; None for the whole page.
    """
    text = README.read_text(encoding="utf-8")
    if section is not None:
        text = re.split(rf"^## {re.escape(section)}$", text, flags=re.MULTILINE)[1]
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def driver_arguments(command: str) -> list[str]:
    """What follows ``python -m orchestrator`` in a command line.

    >>> driver_arguments("ray job submit -- python -m orchestrator evolve small --run /runs/x")
    ['evolve', 'small', '--run', '/runs/x']
    """
    words = shlex.split(command)
    start = words.index("orchestrator") + 1
    assert words[start - 3 : start] == ["python", "-m", "orchestrator"]
    return words[start:]
