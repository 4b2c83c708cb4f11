"""What stops a command before its work: one line that names the cause, and no traceback."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from abmll.errors import PosteriorMismatchError
from model_store.adapters.store import AdapterStore
from model_store.devices import check_device, usable_devices
from model_store.errors import UnusableDeviceError
from model_store.posteriors import DEFAULT_POSTERIORS
from service.cli.failures import expected_errors_in_one_line
from service.cli.main import app
from service.executors.loading import choose_posterior
from service.settings import Settings

SUPPORT = "input,output,options\ngreat film,good,bad|good\ndull story,bad,bad|good\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "support.csv").write_text(SUPPORT)
    (tmp_path / "file").write_text("")
    return tmp_path


def line_of(*arguments: str) -> str:
    """Run a command that cannot start, and return the one line that it prints."""
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 1, ended.output
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "CUDA"])
@pytest.mark.parametrize("command", ["adapt", "predict", "diagnose"])
def test_a_device_that_is_not_there_is_told_before_anything_is_loaded(
    files: Path, monkeypatch: pytest.MonkeyPatch, command: str, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("model_store.pretrained.bases.resolve_base", None)  # nothing is looked for
    support = str(files / "support.csv")
    arguments = [command, support, "--data-dir", str(files / "data"), "--device", device]
    arguments += ["--support", support] if command == "predict" else []
    line = line_of(*arguments)
    assert f"there is no device '{device.lower()}': torch {torch.__version__} can use cpu" in line


def test_the_devices_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_devices() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    check_device("cuda:1")
    with pytest.raises(UnusableDeviceError, match="can use cpu, cuda, cuda:0, cuda:1"):
        check_device("cuda:2")


CUDA_SHORT = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.52 GiB of which "
    "12.25 MiB is free. Including non-PyTorch memory, this process has 23.50 GiB memory in use.\nmore"
)
CPU_SHORT = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 80000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CUDA_SHORT, "GPU 0 has a total capacity of 23.52 GiB of which 12.25 MiB is free;"),
        (CPU_SHORT, "you tried to allocate 80000000000 bytes"),
    ],
)
@pytest.mark.parametrize(
    "loader",
    [
        "model_store.pretrained.bases.load_model",
        "model_store.models.FewShotModel",
        "service.executors.loading.measure_costs",
    ],
)
def test_a_model_that_does_not_fit_is_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, loader: str, error: RuntimeError, said: str
) -> None:
    def short(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loader, short)
    line = line_of("adapt", str(files / "support.csv"), "--data-dir", str(files / "data"))
    assert line.startswith("error: the model does not fit into the memory of cpu: ")
    assert said in line
    assert "choose a smaller --model, --quantisation nf4 or another --device" in line


@pytest.mark.parametrize("folder", ["file", "file/below", "x" * 300])
def test_a_data_folder_that_cannot_be_used_is_named(files: Path, folder: str) -> None:
    line = line_of("adapt", str(files / "support.csv"), "--data-dir", str(files / folder))
    assert f"cannot use {files / folder}" in line
    assert "name another folder" in line


def test_a_store_that_a_server_owns_names_the_server(files: Path) -> None:
    """Commands do not talk to a running server (issue 27)."""
    with AdapterStore(files / "data" / "adapters"):
        line = line_of("adapt", str(files / "support.csv"), "--data-dir", str(files / "data"))
    assert f"another process uses the adapter store {files / 'data' / 'adapters'}" in line
    assert "send it the request over HTTP" in line
    assert "--data-dir" in line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x/[a].csv"),
            "Permission denied: /x/[a].csv",
        ),
        (OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)), "Address already in use"),
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), Path("/x")),
            "No such file or directory: /x",
        ),
    ],
)
def test_what_the_system_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], error: OSError, line: str
) -> None:
    import typer

    with pytest.raises(typer.Exit), expected_errors_in_one_line():
        raise error
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("of a library"), KeyError("x")])
def test_what_is_not_expected_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), expected_errors_in_one_line():
        raise error


def test_the_default_posterior_is_that_of_the_table_and_not_what_sorts_first_or_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_store.posteriors import _SHIPPED

    default = DEFAULT_POSTERIORS[Settings().model]
    for id in ("a-newer", default, "zz-newer"):
        shutil.copytree(_SHIPPED / default, tmp_path / id)
    monkeypatch.setattr("model_store.posteriors._SHIPPED", tmp_path)
    assert choose_posterior(Settings()).manifest.id == default
    monkeypatch.setattr("service.executors.loading.DEFAULT_POSTERIORS", {})
    with pytest.raises(PosteriorMismatchError, match="no posterior is the default for"):
        choose_posterior(Settings())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr("service.executors.build.build_executor", None)
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        line = line_of("serve", "--host", host, "--port", str(port))
    assert f"cannot listen on {host} port {port}: Address already in use; choose another by --host" in line


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "192.0.2.1"])
def test_an_address_of_another_machine_is_told(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr("service.executors.build.build_executor", None)
    assert f"cannot listen on {host} port 0: " in line_of(
        "serve", "--host", host, "--port", "0", "--insecure"
    )
