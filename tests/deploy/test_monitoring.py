from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.deploy.manifests import DATA, DEPLOY, load

PREFIX = "ray_"
"""What Ray puts before the names of an application's metrics."""


def declared() -> dict[str, str]:
    """Name -> type of every metric in the table of metrics.md."""
    text = (DEPLOY / "monitoring/metrics.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(namm_\w+)` \| (\w+) \|", text, flags=re.MULTILINE))


def mentioned(expression: str) -> set[str]:
    return {name.removeprefix(PREFIX) for name in re.findall(r"\bray_\w+", expression)}


def dashboard():
    return json.loads((DEPLOY / "monitoring/grafana-dashboard.json").read_text(encoding="utf-8"))


def rules():
    return [rule for group in load("monitoring/alerts.yaml")["groups"] for rule in group["rules"]]


def test_the_stable_names_are_these():
    assert declared() == {
        "namm_generation": "gauge",
        "namm_generation_seconds": "gauge",
        "namm_units_done_total": "counter",
        "namm_workers": "gauge",
        "namm_worker_deaths_total": "counter",
        "namm_retries_total": "counter",
        "namm_fitness_best": "gauge",
        "namm_kept_ratio_mean": "gauge",
    }


def test_counters_and_only_counters_end_in_total():
    assert {name for name, kind in declared().items() if kind == "counter"} == {
        name for name in declared() if name.endswith("_total")
    }


def test_the_dashboard_shows_every_metric_and_asks_for_no_other():
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    assert set().union(*map(mentioned, expressions)) == set(declared())


def test_counters_are_shown_as_rates_or_increases():
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            if any(declared()[name] == "counter" for name in mentioned(target["expr"])):
                assert re.search(r"\b(rate|increase)\(", target["expr"]), panel["title"]


def test_every_panel_is_for_the_chosen_runs_and_the_chosen_data_source():
    for panel in dashboard()["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert 'run=~"$run"' in target["expr"], panel["title"]
    assert {variable["name"] for variable in dashboard()["templating"]["list"]} == {"datasource", "run"}


def test_panels_have_their_own_places():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24, "Grafana's grid is 24 wide"


def test_alerts_ask_for_declared_metrics_and_say_what_to_do():
    for rule in rules():
        assert mentioned(rule["expr"]), rule["alert"]
        assert mentioned(rule["expr"]) <= set(declared()), rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert {"summary", "description"} <= set(rule["annotations"])


def test_a_stuck_generation_is_the_one_critical_alert():
    assert [rule["alert"] for rule in rules() if rule["labels"]["severity"] == "critical"] == ["NammGenerationStuck"]


def test_the_rules_that_prometheus_loads_are_the_shipped_ones():
    (loaded,) = load("monitoring/prometheus.yaml")["rule_files"]
    mounted = load("compose/docker-compose.yaml")["services"]["prometheus"]["volumes"]
    assert f"../monitoring/alerts.yaml:{loaded}:ro" in mounted


def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    for file in (DEPLOY / "monitoring/alerts.yaml", DATA / "alerts-test.yaml"):
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        [promtool, "test", "rules", "alerts-test.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
