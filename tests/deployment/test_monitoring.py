"""Dashboard, alerts and scaling name only what the service measures, and their tools accept them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from service.metrics import Metrics
from tests.deployment.made_files import METRICS_PAGE, metrics_page
from tests.deployment.tools import CHART, DOCKER, exported, lost, render, run_tool

RULES = CHART / "files/rules.yaml"
DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text())
ADAPTER = yaml.safe_load((DOCKER / "monitoring/adapter.yaml").read_text())
SCRAPED = yaml.safe_load((DOCKER / "monitoring/prometheus.yaml").read_text())
CASES = Path(__file__).parent / "rules_test.yaml"

SERIES = {name: labels for metric in exported() for name, labels in metric.series.items()} | {"up": set()}
OF_PROMETHEUS = {"job", "instance", "namespace", "pod"}
"""Labels that the scrape adds."""

ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Yield each PromQL expression of the dashboard, the alerts and the adapter, with its place."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for rule in ADAPTER["rules"]["custom"]:
        yield rule["name"]["as"], rule["seriesQuery"]
        name = rule["seriesQuery"].partition("{")[0]
        yield (
            rule["name"]["as"],
            (
                rule["metricsQuery"]
                .replace("<<.Series>>", name)
                .replace("<<.LabelMatchers>>", 'namespace="n"')
                .replace("<<.GroupBy>>", "pod")
            ),
        )


QUERIES = list(queries())


@dataclass(frozen=True)
class Used:
    """What an expression reads: labels that it selects by, by series, and labels that it groups by."""

    selected: dict[str, set[str]]
    grouped: set[str]


def used_by(expression: str) -> Used:
    found = Used({}, set())

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            matched = {matcher.name for matcher in node.matchers.matchers}
            found.selected.setdefault(node.name, set()).update(matched)
        elif isinstance(node, promql_parser.MatrixSelector):
            visit(node.vector_selector)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.grouped.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def wrong_names(expression: str) -> list[str]:
    """Return the series and labels of an expression that the service does not have."""
    used = used_by(expression)
    assert used.selected
    series = [name for name in used.selected if name not in SERIES]
    known = {name: SERIES.get(name, set()) | OF_PROMETHEUS for name in used.selected}
    labels = [
        f"{name}{{{label}}}"
        for name, matched in used.selected.items()
        for label in sorted(matched - known[name])
    ]
    return series + labels + sorted(used.grouped - set.union(*known.values()))


@pytest.mark.parametrize(("place", "expression"), QUERIES)
def test_every_series_and_label_is_one_of_the_service(place: str, expression: str) -> None:
    assert wrong_names(expression) == [], place


def test_wrong_names_are_found() -> None:
    assert wrong_names('sum by (lanes) (rate(abmll_unit_seconds_sum{route="x"}[5m]))') == [
        "abmll_unit_seconds_sum{route}",
        "lanes",
    ]
    assert wrong_names("abmll_requests + abmll_ready") == ["abmll_requests"]
    with pytest.raises(ValueError, match="rate"):
        promql_parser.parse("rate(abmll_requests_total)")


def test_the_series_are_those_that_the_service_shows() -> None:
    """Compare with `/metrics` itself, for the metrics whose series appear without a value."""
    metrics = Metrics()
    page, known = metrics.render().decode(), metrics._known_values()
    shown = set(re.findall(r"^(abmll_\w+?)(?:\{.*\})? ", page, re.MULTILINE))
    shown = {name for name in shown if not name.endswith("_created")}
    unlabelled = {name for m in exported() if not m.labels for name in m.series}
    assert shown == unlabelled | {f"{metric._name}_total" for metric in known}
    assert {m.name for m in exported()} == {
        name.removesuffix("_total") for name in re.findall(r"^# TYPE (abmll_\w+) ", page, re.MULTILINE)
    } - set(re.findall(r"^# TYPE (abmll_\w+_created) ", page, re.MULTILINE))


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for panel in PANELS for t in panel["targets"] for name in used_by_panel(t["expr"])}
    assert [m.name for m in exported() if shown.isdisjoint(m.series)] == []


def used_by_panel(expression: str) -> dict[str, set[str]]:
    return used_by(expression.replace("$__rate_interval", "5m")).selected


# ---- the dashboard -------------------------------------------------------------------------------


def read_by_grafana(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Return what Grafana's SDK reads of a dashboard."""
    plugins.register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafanas_models_know_every_field() -> None:
    assert list(lost(DASHBOARD, read_by_grafana(DASHBOARD))) == []


def test_a_field_that_grafana_does_not_know_is_found() -> None:
    dashboard = json.loads(json.dumps(DASHBOARD))
    dashboard["panels"][1]["targets"][0]["legend"] = "x"
    dashboard["refreshh"] = "30s"
    assert set(lost(dashboard, read_by_grafana(dashboard))) == {".panels[1].targets[0].legend", ".refreshh"}


def test_panels_have_places_of_their_own_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert taken.isdisjoint(cells)
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"] and panel["fieldConfig"]["defaults"] is not None for panel in PANELS)


def test_variables_are_defined_and_the_data_source_can_be_chosen() -> None:
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    named = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert named == defined
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)


def test_the_chart_hands_the_dashboard_on_unchanged() -> None:
    made = render({"monitoring": {"dashboard": True}})
    (text,) = made["ConfigMap"]["data"].values()
    assert json.loads(text) == DASHBOARD
    assert made["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"


# ---- alerts, scrape, scaling ---------------------------------------------------------------------


def test_promtool_accepts_the_rules_and_the_configuration(tmp_path: Path) -> None:
    done = run_tool("promtool", "check", "rules", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    configuration = tmp_path / "prometheus.yaml"
    configuration.write_text(yaml.safe_dump(SCRAPED | {"rule_files": [str(RULES)]}))
    done = run_tool("promtool", "check", "config", "--lint-fatal", configuration)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = run_tool("promtool", "test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_to_be_quiet() -> None:
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in ALERTS}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_every_alert_is_explained() -> None:
    page = (DOCKER.parent / "docs/deployment.md").read_text("utf-8")
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r"^\| `(Abmll\w+)`", page, re.MULTILINE))


def test_the_operator_gets_the_same_rules() -> None:
    made = render({"monitoring": {"rules": True, "serviceMonitor": True}})
    assert made["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())


def test_the_job_has_one_name() -> None:
    """The alert on `up` and the dashboard look for the job by its name."""
    (job,) = SCRAPED["scrape_configs"]
    monitor = render({"monitoring": {"serviceMonitor": True}})["ServiceMonitor"]
    by_operator = monitor["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    (named,) = set(re.findall(r'up\{job="([\w-]+)"\}', RULES.read_text()))
    assert job["job_name"] == by_operator == named


def test_the_autoscaler_asks_for_what_the_adapter_offers() -> None:
    made = render({"autoscaling": {"enabled": True}, "separateStores": True})
    asked = {m["pods"]["metric"]["name"] for m in made["HorizontalPodAutoscaler"]["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in ADAPTER["rules"]["custom"]}


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_of_the_metrics_is_fresh() -> None:
    assert METRICS_PAGE.read_text("utf-8") == metrics_page(), "run python -m tests.deployment.made_files"
