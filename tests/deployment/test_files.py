"""The compose file and the runtime of KServe: valid, and in agreement with image and server."""

from __future__ import annotations

import ast
import copy
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from model_store.posteriors import load_posterior, shipped_posteriors
from service.cli.main import app
from service.settings import Settings
from tests.deployment.tools import CHART, DOCKER, ROOT, TOOLS
from tests.test_packaging import PYPROJECT, README, runtime

COMPOSE_TEXT = (DOCKER / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
KSERVE = {m["kind"]: m for m in yaml.safe_load_all((DOCKER / "kserve.yaml").read_text())}
RUNTIME = KSERVE["ServingRuntime"]["spec"]
PREDICTOR = KSERVE["InferenceService"]["spec"]["predictor"]
DRAIN_SECONDS = Settings.model_fields["drain_seconds"].default
IMAGE = f"abmll-serve:{PYPROJECT['project']['version']}"


# ---- one image -----------------------------------------------------------------------------------


def images() -> Iterator[tuple[str, str]]:
    """Yield every place that names our image, with the name."""
    for service, entry in OURS.items():
        yield f"compose.yaml, {service}", entry["image"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())["image"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    yield "chart", f"{values['repository']}:{values['tag'] or chart['appVersion']}"
    for manifest in ("kubernetes.yaml", "kserve.yaml", "ray.yaml"):
        for name in re.findall(r'^\s*image: "?([^"\s]+)', (DOCKER / manifest).read_text(), re.MULTILINE):
            yield manifest, name


def test_the_image_has_one_name_everywhere() -> None:
    named = list(images())
    assert {place.partition(",")[0] for place, _ in named} == {
        "compose.yaml",
        "chart",
        "kubernetes.yaml",
        "kserve.yaml",
        "ray.yaml",
    }
    assert [f"{place}: {name}" for place, name in named if name != IMAGE] == []
    repository = IMAGE.partition(":")[0]
    for text in (README, (ROOT / "docs/deployment.md").read_text("utf-8"), (ROOT / "Dockerfile").read_text()):
        tags = re.findall(r"docker build [^\n]*?-t (\S+)", text)
        assert tags
        assert {tag.partition(":")[0] for tag in tags} == {repository}
    (built,) = re.findall(r"^IMAGE=localhost/(\S+)$", (DOCKER / "build_and_run.sh").read_text(), re.MULTILINE)
    assert built == repository == re.findall(r'title="([^"]*)"', runtime("LABEL"))[0]


# ---- compose -------------------------------------------------------------------------------------


def interpolated(variables: dict[str, str]) -> dict[str, Any]:
    """Return the compose file with its variables, `${NAME:-default}`, and without `x-` blocks."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], COMPOSE_TEXT)
    assert "${" not in text
    return {name: value for name, value in yaml.safe_load(text).items() if not name.startswith("x-")}


@pytest.mark.parametrize(
    "variables", [{}, {"PUBLISH": "0.0.0.0:9000", "TORCH_INDEX_URL": "https://example.org"}]
)
def test_compose_file_follows_the_specification(variables: dict[str, str]) -> None:
    merged = interpolated(variables)  # YAML has resolved the anchors
    read = compose_spec.PyCompose.from_yaml(yaml.safe_dump(merged))
    assert set(read.service_names()) == {"cpu", "gpu", "prometheus", "grafana"}
    wrong = copy.deepcopy(merged)
    wrong["services"]["cpu"]["read_onl"] = True
    with pytest.raises(ValueError, match="read_onl"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(wrong))


def test_compose_has_a_service_for_cpu_and_one_for_gpu() -> None:
    assert {name: service["profiles"] for name, service in OURS.items()} == {"cpu": ["cpu"], "gpu": ["gpu"]}
    for service in OURS.values():
        assert (DOCKER / service["build"]["context"] / "Dockerfile").is_file()
        assert service["volumes"] == [f"data:{runtime('VOLUME')}"]
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS
        assert {n.removeprefix("ABMLL_").lower() for n in service.get("environment", {})} <= set(
            Settings.model_fields
        )
    devices = COMPOSE["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_an_earlier_posterior_lies_on_the_volume_and_can_be_named(tmp_path: Path) -> None:
    """What the page on upgrades says: a new image has not the folder of the old default."""
    page = (ROOT / "docs/upgrades.md").read_text("utf-8")
    (folder,) = set(re.findall(r"posterior: (/[\w/]+)/POSTERIOR", page))
    assert folder.startswith(f"{runtime('VOLUME')}/")
    assert f"--out {folder}/$POSTERIOR" in page
    assert f"ABMLL_POSTERIOR={folder}/POSTERIOR" in page
    given = interpolated({"ABMLL_POSTERIOR": f"{folder}/x", "ABMLL_ALSO_POSTERIORS": "y,z"})
    for name in OURS:
        environment = given["services"][name]["environment"]
        values = {k.removeprefix("ABMLL_").lower(): v for k, v in environment.items() if v}
        assert Settings(**values).posterior == f"{folder}/x"
        assert Settings(**values).other_posteriors == ["y", "z"]
        empty = interpolated({})["services"][name]["environment"]
        assert Settings(posterior=empty["ABMLL_POSTERIOR"]).posterior is None
    id = shipped_posteriors()[0]
    publish = ["posterior", "publish", id, "--out", str(tmp_path / id)]
    assert CliRunner().invoke(app, publish).exit_code == 0
    copy = load_posterior(tmp_path / id).manifest
    assert (copy.id, copy.digest) == (id, load_posterior(id).manifest.digest)


def test_every_compose_service_is_confined_and_on_this_machine_alone() -> None:
    for service in interpolated({})["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_prometheus_and_grafana_find_what_they_are_given() -> None:
    services = COMPOSE["services"]
    mounted: dict[str, Path] = {}
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                assert (DOCKER / source).is_file()
                mounted[target] = DOCKER / source
            else:
                assert source in COMPOSE["volumes"]
    configuration = yaml.safe_load(mounted["/etc/prometheus/prometheus.yml"].read_text())
    assert set(configuration["rule_files"]) <= mounted.keys()
    (job,) = configuration["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert int(port) == int(runtime("EXPOSE"))
    assert all(host in service["networks"]["default"]["aliases"] for service in OURS.values())
    (provider,) = yaml.safe_load(mounted["/etc/grafana/provisioning/dashboards/abmll.yaml"].read_text())[
        "providers"
    ]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted
    assert str(Path(home).parent) == provider["options"]["path"]
    (source,) = yaml.safe_load(mounted["/etc/grafana/provisioning/datasources/abmll.yaml"].read_text())[
        "datasources"
    ]
    assert source["url"] == f"http://prometheus:{services['prometheus']['ports'][0].rpartition(':')[2]}"


# ---- KServe --------------------------------------------------------------------------------------


@functools.cache
def kserve_models() -> dict[str, dict[str, str]]:
    """Return the fields of each model of KServe's SDK, by their names in JSON, with their types.

    The classes are read and not imported: the package requires older versions of ours.
    """
    if not (TOOLS / "kserve").is_dir():
        pytest.skip("the models of KServe's SDK are missing: .ci/tools fetches them")
    models = {}
    for path in sorted((TOOLS / "kserve").glob("v1*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                tables = {
                    target.id: ast.literal_eval(statement.value)
                    for statement in node.body
                    if isinstance(statement, ast.Assign)
                    and isinstance(statement.value, ast.Dict)
                    and isinstance(target := statement.targets[0], ast.Name)
                }
                if "attribute_map" in tables:
                    types, names = tables["openapi_types"], tables["attribute_map"]
                    models[node.name] = {names[field]: kind for field, kind in types.items()}
    return models


def faults(value: Any, kind: str, place: str) -> Iterator[str]:
    """Yield where `value` is not of this type of the SDK. Types of Kubernetes are taken as they
    are.
    """
    scalars = {"str": str, "int": int, "bool": bool, "float": float}
    if kind.startswith("list["):
        for i, item in enumerate(value):
            yield from faults(item, kind[5:-1], f"{place}[{i}]")
    elif kind in scalars:
        if type(value) is not scalars[kind]:
            yield f"{place} is no {kind}"
    elif kind in kserve_models():
        fields = kserve_models()[kind]
        for name, child in value.items():
            if name in fields:
                yield from faults(child, fields[name], f"{place}.{name}")
            else:
                yield f"{place}.{name} is not known"


TOP = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}


@pytest.mark.parametrize("kind", TOP)
def test_kserves_models_know_every_field(kind: str) -> None:
    assert list(faults(KSERVE[kind], TOP[kind], kind)) == []
    wrong = copy.deepcopy(KSERVE[kind])
    wrong["spec"]["predictorr"] = {}
    assert list(faults(wrong, TOP[kind], kind)) == [f"{kind}.spec.predictorr is not known"]


def test_the_pod_that_kserve_makes_is_valid() -> None:
    """KServe merges the runtime's containers and volumes into the predictor's pod."""
    own = {"model", "minReplicas", "maxReplicas", "deploymentStrategy"}
    pod = {name: value for name, value in PREDICTOR.items() if name not in own}
    pod |= {"containers": RUNTIME["containers"], "volumes": RUNTIME["volumes"]}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tickets"}, "spec": pod}
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)
    kubernetes_validate.validate(KSERVE["PersistentVolumeClaim"], "1.29", strict=True)


def test_kserve_asks_for_the_model_by_a_name_that_the_server_knows() -> None:
    (container,) = RUNTIME["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert {name.removeprefix("ABMLL_").lower() for name in variables} <= set(Settings.model_fields)
    assert variables["ABMLL_MODEL_ALIASES"] == "{{.Name}}"
    name = KSERVE["InferenceService"]["metadata"]["name"]
    assert Settings(model_aliases=variables["ABMLL_MODEL_ALIASES"].replace("{{.Name}}", name)).aliases == [
        name
    ]
    assert PREDICTOR["model"]["runtime"] == KSERVE["ServingRuntime"]["metadata"]["name"]
    (known,) = RUNTIME["supportedModelFormats"]
    assert PREDICTOR["model"]["modelFormat"]["name"] == known["name"]
    assert PREDICTOR["model"]["protocolVersion"] in RUNTIME["protocolVersions"]


def test_kserve_probes_drains_and_confines_as_the_chart_does() -> None:
    (container,) = RUNTIME["containers"]
    pod = next(
        m["spec"]["template"]["spec"]
        for m in yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
        if m["kind"] == "StatefulSet"
    )
    (ours,) = pod["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        paths = {"/readyz": "/v2/health/ready", "/livez": "/v2/health/live"}
        port = container["ports"][0]["containerPort"]
        asked = ours[probe] | {"httpGet": {"path": paths[ours[probe]["httpGet"]["path"]], "port": port}}
        assert container[probe] == asked
    assert container["lifecycle"] == ours["lifecycle"]
    assert container["resources"] == ours["resources"]
    assert container["volumeMounts"] == ours["volumeMounts"]
    assert container["securityContext"] == ours["securityContext"] | {"runAsNonRoot": True}
    for name in ("securityContext", "terminationGracePeriodSeconds", "enableServiceLinks"):
        assert PREDICTOR[name] == pod[name]
