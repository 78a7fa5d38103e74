"""What pages embed for their scripts."""

import json
import math

from orchestrator.pages.page import embedded


def test_what_was_not_measured_is_null_wherever_it_stands():
    """Runs on tasks with completions measure one of two scores: their report was refused by JSON."""
    value = {"rows": [{"exact": math.nan, "graded": 0.5}, (math.inf, "a</script>")], "n": 3}
    assert json.loads(embedded(value)) == {"rows": [{"exact": None, "graded": 0.5}, [None, "a</script>"]], "n": 3}
    assert "</script>" not in embedded(value)
