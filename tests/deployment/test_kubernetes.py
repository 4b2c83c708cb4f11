"""The chart, and what it renders: valid for Kubernetes, and in agreement with image and server."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

from service.settings import Settings
from tests.deployment.made_files import MANIFEST, manifest
from tests.deployment.tools import CHART, DOCKER, lost, render, run_tool, template
from tests.test_packaging import PYPROJECT, runtime

OLDEST = "1.29"  # kubeVersion of the chart
VERSIONS = (OLDEST, "1.32", kubernetes_validate.latest_version())
OPERATOR = {"ServiceMonitor": operator.ServiceMonitor, "PrometheusRule": operator.PrometheusRule}
DRAIN_SECONDS = Settings.model_fields["drain_seconds"].default

ALL: dict[str, Any] = {
    "image": {"pullSecrets": [{"name": "registry"}]},
    "settings": {"device": "cuda:0", "max_body_bytes": 16777216, "adapt_share": 0.5, "compile": True},
    "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "separateStores": True,
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "persistence": {"storageClass": "fast"},
    "keys": {"existingSecret": "abmll-keys"},
    "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "service": {"sessionAffinity": "ClientIP"},
    "autoscaling": {"enabled": True},
    "serviceAccountName": "abmll",
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.5/32"}}], "ports": [{"port": 9000}]}],
    },
    "monitoring": {"serviceMonitor": True, "rules": True, "dashboard": False, "labels": {"release": "p"}},
    "podLabels": {"team": "a"},
    "podAnnotations": {"note": "b"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}


SHARED = {
    "replicas": 3,
    "settings": {"store_url": "s3://bucket/prefix"},
    "env": [
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "store", "key": "secret"}}}
    ],
}


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    return made["StatefulSet"]["spec"]["template"]["spec"]


def environment_of(made: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in pod_of(made)["containers"][0]["env"]}


# ---- its own tools -------------------------------------------------------------------------------


def test_helm_finds_nothing_to_say() -> None:
    done = run_tool("helm", "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, ALL, SHARED], ids=["defaults", "all", "shared"])
def test_what_is_rendered_is_valid(values: dict[str, Any], version: str) -> None:
    made = render(values)
    assert set(made) >= {"StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    for kind, document in made.items():
        if kind in OPERATOR:
            read = (
                OPERATOR[kind]
                .model_validate(document)
                .model_dump(mode="json", by_alias=True, exclude_none=True)
            )
            assert list(lost(document, read)) == []
        else:
            kubernetes_validate.validate(document, version, strict=True)


def test_the_validators_find_what_is_wrong() -> None:
    made = render(ALL)
    pod_of(made)["containers"][0]["livenessProbe"]["periodSecond"] = 5
    with pytest.raises(kubernetes_validate.ValidationError, match="periodSecond"):
        kubernetes_validate.validate(made["StatefulSet"], OLDEST, strict=True)
    made["ServiceMonitor"]["spec"]["endpoints"][0]["intervall"] = "15s"
    read = operator.ServiceMonitor.model_validate(made["ServiceMonitor"]).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    assert list(lost(made["ServiceMonitor"], read)) == [".spec.endpoints[0].intervall"]


def test_the_manifest_without_helm_is_what_the_chart_makes() -> None:
    assert MANIFEST.read_text("utf-8") == manifest(), "run python -m tests.deployment.made_files"


# ---- values --------------------------------------------------------------------------------------


def test_the_schema_and_the_defaults_name_the_same_values() -> None:
    """Helm checks the defaults by the schema; this is the other direction."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) - {"global"} == set(values)
    closed = {
        n: c["properties"] for n, c in schema["properties"].items() if c.get("additionalProperties") is False
    }
    assert len(closed) >= 8
    assert {name: set(properties) for name, properties in closed.items()} == {
        n: set(values[n]) for n in closed
    }


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"settings": {"port": 9000}}, "port"),
        ({"settings": {"Device": "cpu"}}, "Device"),
        ({"settings": {"ssl_certfile": "/tmp/cert.pem"}}, "ssl_certfile"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"persistence": {"size": "ten"}}, "size"),
        ({"replicas": 2}, "separateStores: true"),
        ({"autoscaling": {"enabled": True}}, "separateStores: true"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert named in done.stderr


def test_settings_become_variables_that_mean_the_same() -> None:
    settings = {
        name.removeprefix("ABMLL_").lower(): entry.get("value")
        for name, entry in environment_of(render(ALL)).items()
        if name.startswith("ABMLL_") and "value" in entry
    }
    read = Settings(**settings)
    assert {name: getattr(read, name) for name in ALL["settings"]} == ALL["settings"]
    assert read.drain_seconds == DRAIN_SECONDS


def test_every_abmll_variable_is_a_setting() -> None:
    """The server refuses to start on an `ABMLL_` variable that it does not know."""
    for made in (render(), render(ALL)):
        ours = {n.removeprefix("ABMLL_").lower() for n in environment_of(made) if n.startswith("ABMLL_")}
        assert ours >= {"drain_seconds", "threads"}
        assert ours <= set(Settings.model_fields)
        assert pod_of(made)["enableServiceLinks"] is False


def test_a_setting_of_threads_takes_the_place_of_the_pods_share() -> None:
    assert environment_of(render({"settings": {"threads": 3}}))["ABMLL_THREADS"]["value"] == "3"


# ---- the pod -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "drain"), [(15, 45), (30, 120)])
def test_pod_is_given_longer_than_deregistration_and_drain_together(before: int, drain: int) -> None:
    made = render({"preStopSeconds": before, "drainSeconds": drain})
    (container,) = pod_of(made)["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(before)]
    assert float(environment_of(made)["ABMLL_DRAIN_SECONDS"]["value"]) == drain
    assert pod_of(made)["terminationGracePeriodSeconds"] > before + drain


def test_the_drain_of_the_chart_is_that_of_the_server() -> None:
    assert yaml.safe_load((CHART / "values.yaml").read_text())["drainSeconds"] == DRAIN_SECONDS


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")],
)
def test_pod_probes_ask_the_right_question_on_the_right_port(probe: str, path: str) -> None:
    (container,) = pod_of(render())["containers"]
    (port,) = container["ports"]
    assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert port["containerPort"] == int(runtime("EXPOSE"))


def test_pod_is_confined() -> None:
    made = render()
    (container,) = pod_of(made)["containers"]
    user, group = (int(part) for part in runtime("USER").split(":"))
    context = pod_of(made)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {runtime("VOLUME"), "/tmp"}
    assert pod_of(made)["automountServiceAccountToken"] is False


def test_the_cluster_may_choose_the_user() -> None:
    context = pod_of(render(ALL))["securityContext"]
    assert context["runAsNonRoot"] is True
    assert {"runAsUser", "runAsGroup", "fsGroup"}.isdisjoint(context)


def test_service_reaches_the_pod_and_every_selector_finds_it() -> None:
    made = render(ALL)
    labels = made["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    own = {name: value for name, value in labels.items() if name.startswith("app.kubernetes.io/")}
    assert made["StatefulSet"]["spec"]["selector"]["matchLabels"] == own
    assert made["Service"]["spec"]["selector"] == own
    assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == own
    assert made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == own
    assert own.items() <= made["Service"]["metadata"]["labels"].items()
    assert made["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == own
    port = pod_of(made)["containers"][0]["ports"][0]["name"]
    assert made["Service"]["spec"]["ports"][0]["targetPort"] == port
    assert (
        made["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == made["Service"]["spec"]["ports"][0]["name"]
    )
    target = made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", made["StatefulSet"]["metadata"]["name"])
    assert "replicas" not in made["StatefulSet"]["spec"]


def test_adapters_are_on_a_disk_that_outlives_the_pod() -> None:
    made = render()
    (claim,) = made["StatefulSet"]["spec"]["volumeClaimTemplates"]
    (container,) = pod_of(made)["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == runtime("VOLUME")
    retention = made["StatefulSet"]["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert retention == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity.removesuffix("Gi"))


def test_what_a_server_may_fill_leaves_half_of_its_disk_for_base_and_adapters() -> None:
    """The defaults of the server alone would fill more than the disks that these files ask for."""
    sizes = []
    made = [*render().values(), *yaml.safe_load_all((DOCKER / "ray.yaml").read_text())]
    for document in [*made, *yaml.safe_load_all((DOCKER / "kserve.yaml").read_text())]:
        if document["kind"] == "StatefulSet":
            (claim,) = document["spec"]["volumeClaimTemplates"]
            sizes.append(claim["spec"]["resources"]["requests"]["storage"])
        elif document["kind"] == "PersistentVolumeClaim":
            sizes.append(document["spec"]["resources"]["requests"]["storage"])
    bounds = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    bytes_ = bounds["max_stored_file_bytes"] + bounds["store_cache_bytes"]
    assert len(sizes) == 3
    assert all(gibibytes(size) * 2**30 >= 2 * bytes_ for size in sizes)
    for name, value in bounds.items():
        assert environment_of(render())[f"ABMLL_{name.upper()}"]["value"] == str(value)
        assert value < Settings.model_fields[name].default
    for file in ("ray.yaml", "kserve.yaml"):
        text = (DOCKER / file).read_text()
        assert f'ABMLL_MAX_STORED_FILE_BYTES, value: "{bounds["max_stored_file_bytes"]}"' in text


def test_pods_have_names_of_their_own_and_are_scraped_once() -> None:
    made = render({"monitoring": {"serviceMonitor": True}})
    named = made["HeadlessService"]
    assert made["StatefulSet"]["spec"]["serviceName"] == named["metadata"]["name"]
    assert named["spec"]["selector"] == made["Service"]["spec"]["selector"]
    assert named["spec"]["ports"][0]["targetPort"] == made["Service"]["spec"]["ports"][0]["targetPort"]
    (excluded,) = made["ServiceMonitor"]["spec"]["selector"]["matchExpressions"]
    assert excluded["operator"] == "DoesNotExist"
    assert excluded["key"] in named["metadata"]["labels"]
    assert excluded["key"] not in made["Service"]["metadata"]["labels"]


def test_keys_are_mounted_read_only_where_there_are_any() -> None:
    pod = pod_of(render(ALL))
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "keys"]
    assert mount["readOnly"] is True
    assert {"name": "keys", "secret": {"secretName": "abmll-keys"}} in pod["volumes"]


def test_the_server_starts_with_keys_or_is_said_to_be_insecure() -> None:
    """It listens on all addresses, and refuses to do so with neither."""

    def access(values: dict[str, Any]) -> dict[str, str]:
        env = pod_of(render(values))["containers"][0]["env"]
        names = ("ABMLL_KEYS_FILE", "ABMLL_INSECURE", "ABMLL_OPEN_METRICS")
        return {row["name"]: row["value"] for row in env if row["name"] in names}

    assert access({}) == {"ABMLL_INSECURE": "true"}
    assert access({"insecure": False}) == {}
    secret = {"keys": {"existingSecret": "abmll-keys"}}
    with_keys = access(secret)
    assert with_keys == {"ABMLL_KEYS_FILE": "/etc/abmll/keys/keys.json", "ABMLL_OPEN_METRICS": "true"}
    (mount,) = [m for m in pod_of(render(secret))["containers"][0]["volumeMounts"] if m["name"] == "keys"]
    assert with_keys["ABMLL_KEYS_FILE"].startswith(f"{mount['mountPath']}/")


def test_network_is_closed_but_for_what_is_named() -> None:
    spec = render()["NetworkPolicy"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert {entry["port"] for rule in spec["egress"] for entry in rule["ports"]} == {53, 443}
    closed = render({"networkPolicy": {"from": [], "fetch": False}})["NetworkPolicy"]["spec"]
    assert {"ingress", "egress"}.isdisjoint(closed)


def test_a_pod_may_reach_what_is_named_without_reaching_the_internet() -> None:
    own = ALL["networkPolicy"]["egress"]
    rules = render({"networkPolicy": {"fetch": False, "egress": own}})["NetworkPolicy"]["spec"]["egress"]
    assert {entry["port"] for entry in rules[0]["ports"]} == {53}
    assert rules[1:] == own
    assert render(ALL)["NetworkPolicy"]["spec"]["egress"][1:] == own


def test_the_account_of_the_pod_may_be_chosen() -> None:
    assert pod_of(render(ALL))["serviceAccountName"] == "abmll"
    assert "serviceAccountName" not in pod_of(render())


def test_the_version_is_that_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == PYPROJECT["project"]["version"]
    assert OLDEST in chart["kubeVersion"]
