"""From YAML files and overrides to typed settings; every mistake becomes one line that names file, key and remedy.

A file may say ``extends: small`` (a shipped preset) or ``extends: ../base.yaml`` (relative to the file). Sections are
merged key by key, lists are replaced whole, and overrides come last.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import ConfigError
from orchestrator.yaml_text import parse_yaml, shortened

T = TypeVar("T")

KeyPath = tuple[str, ...]
"""A dotted key, split; list positions are decimal digits."""

EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text (put it in quotes)",
    "tuple_type": "a list",
    "dataclass_type": "a section of keys",
    "dict_type": "a section of keys",
}
"""Pydantic's error types in the words of somebody who writes YAML."""

NOUNS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    type(None): ("null", "nulls"),
}
"""Plain types, one and several, where a value is told as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Settings as read, before their types are checked."""

    origin: str
    """Name of the file, for messages."""
    values: dict[str, Any]
    sources: dict[KeyPath, str] = field(default_factory=dict)
    """File or override that each value came from, oldest first."""

    def source(self, path: KeyPath) -> str:
        """The file or override that last had a say in the value at ``path``."""
        said = [label for key, label in self.sources.items() if path and _overlap(key, path)]
        return said[-1] if said else self.origin


def read(path_or_preset_name: str | PathLike[str], overrides: Sequence[str] = ()) -> Document:
    """Merge a file, all that it extends, and the overrides.

    Raises:
        ConfigError: a file or override cannot be read, or files extend each other in a circle.
    """
    values: dict[str, Any] = {}
    sources: dict[KeyPath, str] = {}
    origin = _locate(str(path_or_preset_name), Path())
    for file, layer in _chain(origin):
        values = _merge(values, layer)
        for path, _ in _leaves(layer):
            sources.pop(path, None)
            sources[path] = str(file)
    return override(Document(origin=str(origin), values=values, sources=sources), overrides)


def files(path_or_preset_name: str | PathLike[str]) -> list[Path]:
    """The file that a preset's name or a path means, then all that it extends.

    Raises:
        ConfigError: a file cannot be read, or files extend each other in a circle.
    """
    return [file for file, _ in reversed(_chain(_locate(str(path_or_preset_name), Path())))]


def override(document: Document, overrides: Sequence[str]) -> Document:
    """``document`` with texts like ``search.population=8`` applied; the last one wins.

    Raises:
        ConfigError: a text has another form, or leads nowhere.
    """
    values, sources = document.values, dict(document.sources)
    for text in overrides:
        path, value = _parse_override(text)
        values = _put(values, path, value, text)
        sources.pop(path, None)
        sources[path] = _label(text)
    return Document(origin=document.origin, values=values, sources=sources)


def shipped_folder() -> Path:
    """Where ``deploy`` is, in a source tree or beside the installed packages."""
    return Path(str(resources.files("deploy")))


def build(kind: type[T], document: Document) -> T:
    """Settings of the dataclass ``kind``, with every type checked.

    Raises:
        ConfigError: a key is unknown, missing, of the wrong type or out of bounds.
    """
    # The tuple around `kind` is how pydantic lets plain dataclasses be strict; JSON is the mode in which strict means
    # what YAML needs: a list may fill a tuple and 1 a float, but neither "1" nor true may fill an int.
    wrapped: Any = tuple[kind]  # type: ignore[valid-type]  # a type made at run time
    adapter: TypeAdapter[tuple[T]] = TypeAdapter(wrapped, config=ConfigDict(extra="forbid", strict=True))
    try:
        return adapter.validate_json(json.dumps([document.values], default=str))[0]
    except ValidationError as error:
        raise ConfigError(_one_line(kind, document, error)) from None


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as dotted key to value, positions of list entries included."""
    return {".".join(path): value for path, value in _leaves(values)}


# --- files ------------------------------------------------------------------------------------------------------------


def _locate(name: str, folder: Path) -> Path:
    """File of a preset's bare name, or of a path relative to ``folder``."""
    if Path(name).suffix in (".yaml", ".yml") or Path(name).name != name:
        return folder / name
    shipped = shipped_folder() / "presets"
    names = sorted(file.stem for file in shipped.glob("*.yaml"))
    if name not in names:
        raise ConfigError(
            f"no preset is named {name!r}{_did_you_mean(name, names)}: there are {', '.join(names)}; "
            "a file of your own is given by a path that ends in .yaml"
        )
    return shipped / f"{name}.yaml"


def _chain(file: Path, below: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The file and all that it extends, the most basic first."""
    if any(file.resolve() == other.resolve() for other in below):
        raise ConfigError(f"files extend each other in a circle: {' -> '.join(map(str, (*below, file)))}")
    values = _load(file)
    parent = values.pop("extends", None)
    if parent is None:
        return [(file, values)]
    if not isinstance(parent, str) or not parent:
        raise ConfigError(f"{file}: extends must be the name of a preset or a path: got {_shown(parent)}")
    return [*_chain(_locate(parent, file.parent), (*below, file)), (file, values)]


def _load(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold sections of keys like 'search:': got {_shown(values)}")
    return values


# --- merging ----------------------------------------------------------------------------------------------------------


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _leaves(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if not items:
        yield path, node
    for key, value in items:
        yield from _leaves(value, (*path, str(key)))


def _overlap(a: KeyPath, b: KeyPath) -> bool:
    """Whether one path lies within the other."""
    return all(x == y for x, y in zip(a, b, strict=False))


def _parse_override(text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"{_label(text)} must look like search.population=8 or tasks.0.length=512")
    return path, parse_yaml(value, _label(text))


def _put(node: Any, path: KeyPath, value: Any, text: str) -> Any:
    """``node`` with ``value`` at ``path``; ``text`` is the override, for messages."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if not head.isdecimal() or int(head) >= len(node):
            raise ConfigError(f"{_label(text)}: for '{head}' give the position in a list of {len(node)}, from 0")
        return [_put(child, rest, value, text) if i == int(head) else child for i, child in enumerate(node)]
    if node is not None and not isinstance(node, dict):
        raise ConfigError(f"{_label(text)}: there is no '{head}' in {_shown(node)}, which is not a section of keys")
    return {**(node or {}), head: _put((node or {}).get(head), rest, value, text)}


# --- messages ---------------------------------------------------------------------------------------------------------


def _one_line(kind: type, document: Document, error: ValidationError) -> str:
    # A misspelt key is reported as unknown and as missing; the former is the one to tell.
    details = sorted(
        error.errors(include_url=False), key=lambda detail: detail["type"] != "unexpected_keyword_argument"
    )
    detail = details[0]
    hints = dict(_hints(kind))
    paths = [_key_path(kind, one["loc"][1:]) for one in details]  # without the tuple's index
    path = _whole(hints, paths[0])
    if path == paths[0] and not _is_told_whole(hints.get(_pattern(path))):
        complaint = _complaint(kind, path, detail)
    else:
        got = _shown(_value_at(document.values, path))
        complaint = f"{'.'.join(path)} must be {_described(hints[_pattern(path)])}: got {got}"
    # A dataclass's own check is located at its section, but its message begins with the key.
    named = tuple(complaint.split()[0].rstrip(":").split(".")) if detail["type"] == "value_error" else path
    num_others = len({_whole(hints, one) for one in paths}) - 1
    others = f" (and {num_others} more)" if num_others else ""
    return f"{document.source(named)}: {complaint}{others}"


def _key_path(kind: type, location: Sequence[str | int]) -> KeyPath:
    """The dotted key that an error is about, without the tag that pydantic puts in where sections are of many kinds."""
    hints = dict(_hints(kind))
    path: KeyPath = ()
    is_after_tag = False
    for part in location:
        in_list = path and path[-1].isdecimal() and not is_after_tag
        if in_list and len(_sections(hints.get(_pattern(path[:-1])))) > 1:
            is_after_tag = True
            continue
        path, is_after_tag = (*path, str(part)), False
    return path


def _whole(hints: Mapping[KeyPath, Any], path: KeyPath) -> KeyPath:
    """The key that ``path`` lies within, where that is told as a whole; else ``path``."""
    prefixes = (path[:length] for length in range(1, len(path) + 1))
    return next((prefix for prefix in prefixes if _is_told_whole(hints.get(_pattern(prefix)))), path)


def _is_told_whole(hint: Any) -> bool:
    """Whether a mistake within a value is told of all of it: a list of fixed length, or one of several plain types."""
    kinds = [kind for kind in _members(hint) if kind is not type(None)]
    return all(kind in NOUNS or _is_fixed(kind) for kind in kinds) and (len(kinds) > 1 or any(map(_is_fixed, kinds)))


def _is_fixed(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and ... not in typing.get_args(hint)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _described(hint: Any) -> str:
    return " or ".join(
        f"a list of {len(typing.get_args(kind))} {NOUNS[typing.get_args(kind)[0]][1]}"
        if _is_fixed(kind)
        else NOUNS[kind][0]
        for kind in _members(hint)
    )


def _value_at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def _complaint(kind: type, path: KeyPath, detail: ErrorDetails) -> str:
    key = ".".join(path)
    hints = dict(_hints(kind))
    if detail["type"] == "unexpected_keyword_argument":
        return _unknown(path, list(hints))
    if detail["type"] == "missing":
        return f"required key '{key}' is missing"
    if detail["type"] == "value_error":  # raised by a dataclass's own check
        reason = str(detail["ctx"]["error"])
        return reason if path == () or key in reason else f"{key}: {reason}"
    context = detail.get("ctx", {})
    if detail["type"].startswith("union_tag"):
        tag = str(context["discriminator"]).strip("'")
        if detail["type"] == "union_tag_not_found":
            return f"required key '{key}.{tag}' is missing"
        return f"{key}.{tag} must be {context['expected_tags']}: got {_shown(context['tag'])}"
    expected = context.get("expected") or EXPECTED.get(detail["type"]) or detail["msg"]
    or_null = " or null" if type(None) in typing.get_args(hints.get(_pattern(path))) else ""
    return f"{key} must be {expected}{or_null}: got {_shown(detail['input'])}"


def _unknown(path: KeyPath, valid: Sequence[KeyPath]) -> str:
    siblings = list(dict.fromkeys(key for key in valid if key[:-1] == _pattern(path)[:-1]))
    homonyms = [key for key in valid if key[-1] == path[-1]]
    section = ".".join(path[:-1])
    if homonyms:  # the right name in the wrong section
        nearest = f": did you mean '{'.'.join(homonyms[0]).replace('*', '0')}'?"
    else:
        close = difflib.get_close_matches(path[-1], [key[-1] for key in siblings], n=1)
        nearest = f": did you mean '{'.'.join((*path[:-1], *close))}'?" if close else ""
    allowed = ", ".join(key[-1] for key in siblings)
    return f"unknown key '{'.'.join(path)}'{nearest} (allowed in {section or 'the file'}: {allowed})"


def _hints(kind: type, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every valid key with its type; ``*`` stands for the position in a list."""
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        hint, below = hints[entry.name], (*path, entry.name)
        yield below, hint
        if typing.get_origin(hint) is tuple:
            below = (*below, "*")
        for section in _sections(hint):
            yield from _hints(section, below)


def _sections(hint: Any) -> list[type]:
    """The dataclasses that a value, or an entry of a list, may be."""
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return [
        kind for kind in typing.get_args(hint) or (hint,) if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]


def _pattern(path: KeyPath) -> KeyPath:
    return tuple("*" if part.isdecimal() else part for part in path)


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _shown(value: Any) -> str:
    """A value as YAML writes it, at most 60 characters."""
    return shortened(json.dumps(value, default=str, ensure_ascii=False))


def _label(text: str) -> str:
    """How an override is named."""
    return f"override '{shortened(text, 120)}'"
