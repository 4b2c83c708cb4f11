"""The Ray cluster and the server in front of it: valid, and in agreement with image, server and
KubeRay.
"""

from __future__ import annotations

import copy
import re
from importlib.metadata import version
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from service.settings import Settings
from tests.deployment.tools import DOCKER, ROOT
from tests.test_packaging import PYPROJECT, runtime

TEXT = (DOCKER / "ray.yaml").read_text("utf-8")
DOCUMENTS = list(yaml.safe_load_all(TEXT))
MADE = {document["kind"]: document for document in DOCUMENTS}
POLICIES = {d["metadata"]["name"]: d["spec"] for d in DOCUMENTS if d["kind"] == "NetworkPolicy"}
CLUSTER = MADE["RayCluster"]
HEAD = CLUSTER["spec"]["headGroupSpec"]
(GROUP,) = CLUSTER["spec"]["workerGroupSpecs"]
FRONT = MADE["Deployment"]["spec"]["template"]["spec"]

# No package brings KubeRay's schema, so these are the fields of its API `ray.io/v1` that one may
# set, with their types, as its `RayClusterSpec` declares them. Pods are checked by Kubernetes' own.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
POD = {"type": "object", "required": ["spec"], "properties": {"metadata": {}, "spec": {}}}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


SCHEMA = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata={"type": "object", "required": ["name"]},
    spec=closed(
        ["headGroupSpec"],
        rayVersion={"type": "string"},
        suspend={"type": "boolean"},
        enableInTreeAutoscaling={"type": "boolean"},
        headServiceAnnotations=TEXTS,
        headGroupSpec=closed(
            ["rayStartParams", "template"],
            rayStartParams=TEXTS,
            serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
            enableIngress={"type": "boolean"},
            template=POD,
        ),
        workerGroupSpecs={
            "type": "array",
            "items": closed(
                ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                groupName={"type": "string"},
                replicas=COUNT,
                minReplicas=COUNT,
                maxReplicas=COUNT,
                numOfHosts=COUNT,
                rayStartParams=TEXTS,
                template=POD,
            ),
        },
    ),
)


def environment(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in pod["containers"][0]["env"]}


def test_the_cluster_follows_kuberays_schema() -> None:
    jsonschema.validate(CLUSTER, SCHEMA)
    for wrong in ({"workerGroupSpec": []}, {"rayVersion": 2.6}):
        changed = copy.deepcopy(CLUSTER)
        changed["spec"] |= wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, SCHEMA)


@pytest.mark.parametrize("at", ["1.29", kubernetes_validate.latest_version()])
def test_the_rest_and_the_clusters_pods_follow_kubernetes_schema(at: str) -> None:
    for document in DOCUMENTS:
        if document["kind"] != "RayCluster":
            kubernetes_validate.validate(document, at, strict=True)
    for template in (HEAD["template"], GROUP["template"]):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {**template["metadata"], "name": "pod"}
        kubernetes_validate.validate(pod, at, strict=True)


def test_the_server_asks_the_cluster_for_what_it_has() -> None:
    given = {
        name.removeprefix("ABMLL_").lower(): entry["value"]
        for name, entry in environment(FRONT).items()
        if name.startswith("ABMLL_")
    }
    settings = Settings(**given)
    assert settings.executor == "ray"
    assert settings.ray_address == f"ray://{CLUSTER['metadata']['name']}-head-svc:10001"
    ports = {
        port["name"]: port["containerPort"] for port in HEAD["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports["client"] == 10001
    limits = GROUP["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.device == "cuda"
    assert limits["nvidia.com/gpu"] == 1
    assert settings.workers == GROUP["replicas"] <= GROUP["maxReplicas"]
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


def test_every_part_has_the_token_and_the_same_ray() -> None:
    pods = [HEAD["template"]["spec"], GROUP["template"]["spec"], FRONT]
    for pod in pods:
        assert environment(pod)["RAY_AUTH_MODE"]["value"] == "token"
        secret = environment(pod)["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in TEXT
    (requirement,) = map(Requirement, PYPROJECT["project"]["optional-dependencies"]["ray"])
    assert requirement.specifier.contains(CLUSTER["spec"]["rayVersion"])
    assert requirement.specifier.contains(version("ray"))
    assert '--build-arg EXTRAS="s3 ray"' in TEXT
    assert "ARG EXTRAS" in (ROOT / "Dockerfile").read_text()


def test_only_the_cluster_and_the_server_reach_rays_ports() -> None:
    policy = POLICIES["abmll-ray"]
    label = "app.kubernetes.io/name"
    own = policy["podSelector"]["matchLabels"][label]
    for template in (HEAD["template"], GROUP["template"]):
        assert template["metadata"]["labels"][label] == own
    (rule,) = policy["ingress"]
    front = MADE["Deployment"]["spec"]["template"]["metadata"]["labels"][label]
    assert [peer["podSelector"]["matchLabels"][label] for peer in rule["from"]] == [own, front]
    assert MADE["Service"]["spec"]["selector"][label] == front


def test_the_server_has_keys_and_is_reached_from_its_namespace_alone() -> None:
    names = environment(FRONT)
    (mount,) = [m for m in FRONT["containers"][0]["volumeMounts"] if m["name"] == "keys"]
    assert mount["readOnly"] is True
    assert names["ABMLL_KEYS_FILE"]["value"] == f"{mount['mountPath']}/keys.json"
    (volume,) = [v for v in FRONT["volumes"] if v["name"] == "keys"]
    assert f"create secret generic {volume['secret']['secretName']} --from-file=keys.json" in TEXT
    policy = POLICIES["abmll-front"]
    labels = MADE["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {}}]
    ports = [entry["name"] for entry in FRONT["containers"][0]["ports"]]
    assert [entry["port"] for entry in rule["ports"]] == ports


@pytest.mark.parametrize("access", ["ABMLL_KEYS_FILE", "ABMLL_INSECURE"])
def test_every_file_that_starts_the_image_says_who_may_use_it(access: str) -> None:
    """The image listens on all addresses, and refuses to do so with neither."""
    files = {"ray.yaml", "kserve.yaml", "kubernetes.yaml", "compose.yaml"}
    saying = {name for name in files if re.search(rf"\b{access}\b[:,]", (DOCKER / name).read_text())}
    assert (
        saying
        == {
            "ABMLL_KEYS_FILE": {"ray.yaml", "compose.yaml"},
            "ABMLL_INSECURE": {"kserve.yaml", "kubernetes.yaml", "compose.yaml"},
        }[access]
    )


def test_the_server_is_probed_drained_and_confined_as_the_chart_does() -> None:
    pod = next(
        m["spec"]["template"]["spec"]
        for m in yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
        if m["kind"] == "StatefulSet"
    )
    (theirs,), (ours,) = pod["containers"], FRONT["containers"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports", "securityContext"):
        assert ours[name] == theirs[name]
    assert FRONT["terminationGracePeriodSeconds"] == pod["terminationGracePeriodSeconds"]
    for spec in (FRONT, HEAD["template"]["spec"], GROUP["template"]["spec"]):
        assert spec["securityContext"] == pod["securityContext"]
        assert spec["enableServiceLinks"] is False
        (container,) = spec["containers"]
        assert container["securityContext"] == theirs["securityContext"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts >= {runtime("VOLUME"), "/tmp"}
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_ray_is_probed_at_ports_that_it_is_told() -> None:
    for group, port in ((HEAD, 6379), (GROUP, int(GROUP["rayStartParams"]["node-manager-port"]))):
        (container,) = group["template"]["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["tcpSocket"]["port"] == port
        assert re.search(r"exec /bin/bash -c \"\$KUBERAY_GEN_RAY_START_CMD\"", container["args"][0])
        assert group["template"]["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
