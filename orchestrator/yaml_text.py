"""YAML as settings have it: texts, numbers, true, false, null, lists, and sections whose keys are texts."""

from __future__ import annotations

import re
from typing import Any

import yaml

from orchestrator.errors import ConfigError

MOST_BITS = 1024
"""Of a whole number: more are no number for a machine either, and Python refuses to write some of them down."""


def parse_yaml(text: str, source: str) -> Any:
    """What ``text`` says, in values that JSON has too.

    Args:
        text: YAML.
        source: where it is from, for messages.

    Raises:
        ConfigError: it is no YAML, or says what settings cannot be.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader with amendments
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: lists or sections lie in each other too deeply") from None


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: ``1e-3`` is a number, a date is a text, and no key may appear twice."""

    def construct_object(self, node: yaml.Node, deep: bool = True) -> Any:  # noqa: ARG002
        """Whole at once, so that what holds itself is found out; what a tag cannot make is told with its place."""
        if node in self.recursive_objects:
            raise yaml.MarkedYAMLError(problem="it holds itself", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep=True)
        except (ValueError, TypeError, LookupError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            value = f"'{shortened(node.value)}' is" if isinstance(node, yaml.ScalarNode) else "this is"
            raise yaml.MarkedYAMLError(problem=f"{value} no {kind}", problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = True) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem="expected a section of keys", problem_mark=node.start_mark)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)  # what `<<` names, in place of it
        for key, _ in node.value:
            key.tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """An ``int``, of a size that can be told."""
        value: int = self.construct_yaml_int(node)
        if value.bit_length() > MOST_BITS:
            raise ValueError(f"more than {MOST_BITS} bits")
        return value

    def date(self, node: yaml.ScalarNode) -> str:
        """As it is written: settings have no dates."""
        return str(self.construct_scalar(node))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.date)


def shortened(text: str, most: int = 60) -> str:
    """``text``, or its beginning, in ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
