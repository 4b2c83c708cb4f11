"""The files around the code agree with the code: image, scripts, licence."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def dockerfile_stages() -> list[list[tuple[str, str]]]:
    """Instructions of the Dockerfile as (name, argument), one list per stage, from its FROM on."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    instructions = [
        (name, argument.strip()) for name, _, argument in (line.partition(" ") for line in lines if line)
    ]
    starts = [i for i, (name, _) in enumerate(instructions) if name == "FROM"]
    return [instructions[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


RUNTIME = dockerfile_stages()[-1]


RUNTIME_COMMANDS = "\n".join(argument for name, argument in RUNTIME if name == "RUN")


def runtime(name: str) -> str:
    """The argument of the runtime stage's only instruction of that name."""
    (argument,) = (argument for n, argument in RUNTIME if n == name)
    return argument


def runtime_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in runtime("ENV").split())


# ---- the image -----------------------------------------------------------------------------------


def test_image_is_built_in_two_stages_from_one_base() -> None:
    stages = dockerfile_stages()
    assert [stage[0][1] for stage in stages] == ["${BASE_IMAGE} AS builder", "${BASE_IMAGE}"]
    assert not any("pip " in argument for name, argument in RUNTIME if name == "RUN")


def test_dockerfile_names_no_address() -> None:
    assert "://" not in (ROOT / "Dockerfile").read_text()


def test_image_runs_as_a_fixed_non_root_user_after_all_that_needs_root() -> None:
    user, group = (int(part) for part in runtime("USER").split(":"))
    assert user >= 10000
    assert group >= 10000
    names = [name for name, _ in RUNTIME]
    assert "RUN" not in names[names.index("USER") :]


def test_image_starts_the_installed_command() -> None:
    (command,) = json.loads(runtime("ENTRYPOINT"))
    assert command in PYPROJECT["project"]["scripts"]
    assert json.loads(runtime("CMD")) == ["serve", "--host", "0.0.0.0"]
    assert int(runtime("EXPOSE")) == Settings.model_fields["port"].default


def test_image_health_is_liveness_and_needs_nothing_but_python() -> None:
    command = json.loads(runtime("HEALTHCHECK").partition("CMD ")[2])
    assert command[:2] == ["python3", "-c"]
    assert "'/livez'" in command[2]
    compile(command[2], "HEALTHCHECK", "exec")


def test_any_user_of_group_0_may_write_where_the_server_writes() -> None:
    (made,) = re.findall(r"install -d -m (\d+) -o (\d+) -g (\d+) (.*)", RUNTIME_COMMANDS)
    mode, owner, group, folders = made
    assert (mode, group) == ("2775", "0")
    assert owner == runtime("USER").split(":")[0]
    environment = runtime_environment()
    assert folders.split() == [
        runtime("VOLUME"),
        environment["ABMLL_CACHE_DIR"],
        environment["ABMLL_DATA_DIR"],
    ]
    assert environment["LOGNAME"]  # getpass.getuser() fails for a user without a name


def test_what_the_server_writes_lies_under_the_volume() -> None:
    environment = runtime_environment()
    for name in ("ABMLL_CACHE_DIR", "ABMLL_DATA_DIR", "HF_HOME"):
        assert Path(environment[name]).is_relative_to(runtime("VOLUME"))


def test_image_label_carries_the_version_and_licence_of_the_package() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', runtime("LABEL")))
    assert labels["version"] == PYPROJECT["project"]["version"]
    assert labels["licenses"] == PYPROJECT["project"]["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_build_context_holds_what_the_package_needs() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {
        pattern.rstrip("*") for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    files = {"pyproject.toml", PYPROJECT["project"]["readme"], *PYPROJECT["project"]["license-files"]}
    assert allowed == packages | files


# ---- scripts and hooks ---------------------------------------------------------------------------


@pytest.mark.parametrize("script", [".ci/run", ".ci/tools", "docker/build_and_run.sh"])
def test_scripts_are_executable_and_stop_at_the_first_error(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("name", ["run-command", "test-command"])
def test_readme_commands_are_one_line_that_installs_what_it_needs(name: str) -> None:
    """`.ci/run` takes the test command from after its marker."""
    (block,) = re.findall(rf"<!-- {name} -->\n```sh\n(.*?)```\n", README, re.DOTALL)
    (command,) = block.splitlines()
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_readme_runs_the_image_on_its_port_and_volume_for_this_machine_alone() -> None:
    (command,) = re.findall(r"^docker build .*$", README, re.MULTILINE)
    port = runtime("EXPOSE")
    assert f"-p 127.0.0.1:{port}:{port} " in command
    assert f":{runtime('VOLUME')} " in command


def test_commit_hooks_run_the_tools_of_the_dev_extra() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    tools = {hook["entry"].split()[0] for hook in repository["hooks"]}
    dev = {
        re.split(r"[<>=\[]", requirement)[0]
        for requirement in PYPROJECT["project"]["optional-dependencies"]["dev"]
    }
    assert tools == {"ruff", "mypy", "codespell"}
    assert tools <= dev
