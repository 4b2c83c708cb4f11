from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.executors.build import settings_by_worker
from service.settings import Settings
from service.settings.loading import load_settings
from service.settings.values import SettingsError


def test_the_command_line_wins_over_the_environment_which_wins_over_the_default(monkeypatch) -> None:
    assert load_settings().port == 8000
    monkeypatch.setenv("ABMLL_PORT", "8001")
    assert load_settings().port == 8001
    assert load_settings(port=8002).port == 8002
    assert load_settings(port=None).port == 8001


@pytest.mark.parametrize("variable", ["ABMLL_PROT", "abmll_modle"])
def test_an_unknown_variable_is_refused_by_name(monkeypatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=variable):
        load_settings()


EMPTY = ["", " ", "\t\n"]


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_as_good_as_none(monkeypatch, name: str, empty: str) -> None:
    """An empty `ABMLL_HOST` opened the server to every interface before."""
    expected = load_settings()
    monkeypatch.setenv(f"ABMLL_{name.upper()}", empty)
    assert load_settings() == expected == Settings()
    assert load_settings(**{name: empty}) == expected


def test_an_empty_argument_leaves_the_setting_to_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("ABMLL_HOST", "10.0.0.1")
    assert load_settings(host="").host == "10.0.0.1"


def test_an_empty_variable_that_is_no_setting_is_ignored(monkeypatch) -> None:
    monkeypatch.setenv("ABMLL_PROT", "")
    assert load_settings() == Settings()


@pytest.mark.parametrize("empty", EMPTY)
def test_an_empty_option_is_as_good_as_none(monkeypatch, empty: str) -> None:
    monkeypatch.setenv("ABMLL_PORT", "81")
    usual = json.loads(CliRunner().invoke(app, ["serve", "--print-config"]).stdout)
    for option in ("--host", "--port", "--data-dir", "--cache-dir", "--executor", "--deadline-seconds"):
        for arguments in ([option, empty], [f"{option}={empty}"]):
            shown = CliRunner().invoke(app, ["serve", *arguments, "--print-config"])
            assert json.loads(shown.stdout) == usual, shown.output
    given = ["serve", "--host", "", "--port=82", "--print-config", "--host", "::1"]
    assert json.loads(CliRunner().invoke(app, given).stdout) == {**usual, "host": "::1", "port": 82}
    assert CliRunner().invoke(app, ["serve", "--host"]).exit_code == 2


NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation is float]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "Infinity", "1e999", "1e300"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_is_a_number_that_timers_can_take(monkeypatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"ABMLL_{name.upper()}", value)
    with pytest.raises(SettingsError, match=f"setting {name}: "):
        load_settings()
    with pytest.raises(SettingsError, match=f"setting {name}: "):
        load_settings(**{name: float(value)})


@pytest.mark.parametrize(("given", "scale"), [("6", 6.0), ("off", "off")])
def test_samples_differ_in_the_readout_at_a_scale_or_everywhere(given: str, scale: object) -> None:
    assert load_settings(readout_scale=given).readout_scale == scale
    shown = CliRunner().invoke(app, ["serve", "--readout-scale", given, "--print-config"])
    assert json.loads(shown.stdout)["readout_scale"] == scale


@pytest.mark.parametrize("given", ["0", "-1", "1001", "on"])
def test_a_scale_of_the_readout_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="setting readout_scale: "):
        load_settings(readout_scale=given)


@pytest.mark.parametrize(("given", "device"), [("CPU", "cpu"), (" cuda ", "cuda"), ("CUDA:1", "cuda:1")])
def test_a_device_is_known_in_any_case(given: str, device: str) -> None:
    assert load_settings(device=given).device == device


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:", "cuda:-1", "cuda:x", "0", "xpu", "cpu:0"])
def test_a_device_of_another_name_is_refused_with_the_names(device: str) -> None:
    with pytest.raises(SettingsError, match=f"no device '{device}': name `cpu`, `cuda`"):
        load_settings(device=device)


def test_a_wrong_value_is_refused_with_the_name_of_its_setting(monkeypatch) -> None:
    monkeypatch.setenv("ABMLL_MAX_SAMPLES", "65")
    with pytest.raises(SettingsError, match="max_samples"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "service"),
    [
        ("ABMLL_PORT", "tcp://10.0.0.7:8000", "abmll"),
        ("ABMLL_PORT", "udp://10.0.0.7:8000", "abmll"),
        ("ABMLL_SERVICE_HOST", "10.0.0.7", "abmll"),
        ("ABMLL_SERVICE_PORT", "8000", "abmll"),
        ("ABMLL_SERVICE_PORT_HTTP", "8000", "abmll"),
        ("ABMLL_PORT_8000_TCP", "tcp://10.0.0.7:8000", "abmll"),
        ("ABMLL_PORT_8000_TCP_ADDR", "10.0.0.7", "abmll"),
        ("ABMLL_SERVE_PORT", "tcp://10.0.0.7:80", "abmll-serve"),
        ("ABMLL_MAX_INPUTS_SERVICE_HOST", "10.0.0.7", "abmll-max-inputs"),
    ],
)
def test_a_link_of_kubernetes_is_named_with_its_cause_and_the_remedy(
    monkeypatch, variable: str, value: str, service: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    for word in (
        f"{variable}={value!r}",
        f"the Service {service!r}",
        "Kubernetes",
        "enableServiceLinks: false",
    ):
        assert word in str(refused.value)


@pytest.mark.parametrize(("variable", "value"), [("ABMLL_PORT", "x"), ("ABMLL_PROT", "tcp://10.0.0.7:8000")])
def test_no_other_wrong_variable_is_taken_for_a_link(monkeypatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "Kubernetes" not in str(refused.value)


def test_unknown_settings_and_changes_are_refused() -> None:
    with pytest.raises(SettingsError, match="nonsense"):
        load_settings(nonsense=1)
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 2, "executor": "inline"}, "several workers need the executor `process`"),
        ({"workers": 2, "device": "cuda:1"}, "not one by its number"),
        ({"executor": "ray", "device": "cuda:1"}, "Ray chooses the GPU"),
        ({"ray_address": "auto"}, "`ray_address` needs the executor `ray`"),
        ({"adapt_share": 1.0}, "adapt_share"),
    ],
)
def test_settings_that_contradict_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(**given)


def test_each_worker_has_a_gpu_of_its_own_or_its_share_of_the_cores(monkeypatch) -> None:
    monkeypatch.setattr("service.executors.build._cores", lambda: 9)
    of_gpus = settings_by_worker(Settings(device="cuda", workers=3))
    assert [own.device for own in of_gpus] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [own.threads for own in settings_by_worker(Settings(workers=2))] == [4, 4]
    assert [own.threads for own in settings_by_worker(Settings(workers=2, threads=3))] == [3, 3]
    alone = Settings(device="cuda:1")
    assert settings_by_worker(alone) == [alone]


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_print_config_shows_what_the_server_would_use(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ABMLL_MAX_INPUTS", "7")
    result = CliRunner().invoke(app, ["serve", "--print-config", "--port", "9", "--data-dir", str(tmp_path)])
    shown = json.loads(result.stdout)
    assert (shown["port"], shown["max_inputs"], shown["data_dir"]) == (9, 7, str(tmp_path))
    assert set(shown) == set(Settings.model_fields)


def test_serve_refuses_an_unknown_variable(monkeypatch) -> None:
    monkeypatch.setenv("ABMLL_PROT", "1")
    result = CliRunner().invoke(app, ["serve", "--print-config"])
    assert result.exit_code == 2
    assert "ABMLL_PROT" in result.output


def test_help_shows_each_setting_below_the_heading_of_its_group() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    places = [
        shown.index(text)
        for text in ("Where the server listens", "--port", "How large a request", "--max-inputs")
    ]
    assert places == sorted(places)


def test_a_configuration_file_is_below_the_environment_and_above_the_defaults(
    monkeypatch, tmp_path: Path
) -> None:
    path = tmp_path / "abmll.toml"
    path.write_text('port = 81\nmax_steps = 7\nhost = "::1"\n')
    monkeypatch.setenv("ABMLL_PORT", "82")
    monkeypatch.setenv("ABMLL_HOST", "")
    found = load_settings(path)
    assert (found.port, found.max_steps, found.host, found.workers) == (82, 7, "::1", 1)
    assert load_settings(path, port=83).port == 83
    monkeypatch.setenv("ABMLL_CONFIG", str(path))
    assert load_settings().max_steps == 7
    shown = CliRunner().invoke(app, ["serve", "--config", str(path), "--print-config"])
    assert json.loads(shown.stdout)["max_steps"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown setting in the configuration file .*: prot"),
        ("port = [", "cannot be read"),
        ("port = 70000", "setting port: "),
        ("[port]\nx = 1", "setting port: "),
        (None, "No such file"),
    ],
)
def test_a_wrong_configuration_file_is_refused_by_name(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "abmll.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(path)
