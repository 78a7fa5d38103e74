"""Errors are one line, know their exit code, and survive a process boundary."""

import pickle

import pytest

from orchestrator import errors
from orchestrator.errors import ConfigError, NammError, SearchError, UnitQuarantinedError


def test_a_message_of_several_lines_becomes_one():
    assert str(ConfigError("line one\n    line two")) == "line one line two"


def test_every_error_is_drawn_in_the_tree_of_the_module_docstring():
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NammError)]
    assert len(classes) == 11
    assert [kind.__name__ for kind in classes if kind.__name__ not in (errors.__doc__ or "")] == []


@pytest.mark.parametrize(("kind", "code"), [(ConfigError, 2), (SearchError, 1), (UnitQuarantinedError, 1)])
def test_the_exit_code_says_who_can_mend_it(kind, code):
    assert kind.exit_code == code


def test_a_quarantined_unit_tells_its_whole_story_also_after_pickling():
    story = ("worker 2 ran out of memory", "worker 0 ran out of memory")
    error = UnitQuarantinedError({"g000003_namm_facts": story, "g000003_namm_code": story})
    again = pickle.loads(pickle.dumps(error))
    assert again.stories == error.stories
    assert again.stories["g000003_namm_code"] == story
    assert str(again) == str(error)
    assert "1 more were set aside" in str(error)
    assert "attempt 1: worker 2 ran out of memory; attempt 2: worker 0 ran out of memory" in str(error)
