"""`abmll serve` starts the server; `abmll demo` sends a first request to a running one."""

from __future__ import annotations

import logging
import os
import socket
from functools import partial
from ipaddress import ip_address
from typing import Annotated

import httpx
import typer

from model_store.terminal import shown
from service.cli.failures import expected_errors_in_one_line
from service.cli.output import err, out
from service.cli.settings_options import with_settings
from service.logs import set_up_logs
from service.schemas import demo as demo_task
from service.settings import Settings
from service.settings.values import SettingsError

log = logging.getLogger(__name__)


@with_settings()
def serve(
    settings: Settings,
    demo: Annotated[
        bool, typer.Option("--demo", help="Once ready, answer a demo request and keep serving.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings and exit.")
    ] = False,
) -> None:
    """Start the server."""
    if print_config:
        out.print_json(settings.model_dump_json())
        return
    with expected_errors_in_one_line():
        _check_access(settings)
        _check_address(settings.host, settings.port)
    set_up_logs(settings.log_format, settings.log_level)
    log.info("loading the model; requests get 503 until the line that begins with `ready`")
    from service.executors.build import build_executor  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415

    # The worker processes start before the server's own imports: they need the same ones, and more.
    metrics = Metrics()
    with expected_errors_in_one_line():
        executor = build_executor(settings, metrics, "process", early=True)
    from service.server import serve as run  # noqa: PLC0415

    with expected_errors_in_one_line():
        raise typer.Exit(
            run(settings, executor, metrics, on_ready=partial(_demo_here, settings) if demo else None)
        )


def _check_access(settings: Settings) -> None:
    """Raise `SettingsError` where others could reach a server that lets everyone do everything.

    It raises it too where the keys cannot be read, before a model is loaded.
    """
    if settings.keys_file is not None:
        from service.principals.keys_file import read_keys  # noqa: PLC0415

        read_keys(settings.keys_file)
    if settings.keys_file is not None or settings.insecure or _is_this_machine(settings.host):
        return
    raise SettingsError(
        f"without keys, everyone who reaches {settings.host} could read and delete every adapter. Either make "
        "keys (`abmll keys add TENANT --keys-file keys.json`) and start with --keys-file keys.json, or start "
        "with --insecure (ABMLL_INSECURE=true), for a network in which everyone may do so"
    )


def _check_address(host: str, port: int) -> None:
    """Raise `SettingsError` where no server can listen, before a model is loaded for it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        named = isinstance(error, socket.gaierror)  # its numbers are not those of the system
        reason = error.strerror if named or error.errno is None else os.strerror(error.errno)
        raise SettingsError(
            f"cannot listen on {host} port {port}: {reason}; choose another by --host and --port"
        ) from error


def demo(
    url: Annotated[str, typer.Option(help="Address of a running server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="ABMLL_API_KEY", show_envvar=True, help="Key with the scopes `predict` and `adapt`."
        ),
    ] = None,
) -> None:
    """Send a first request to a running server: adapt to 16 support tickets and sort 6 new ones."""
    if not _show_demo(url, api_key):
        raise typer.Exit(1)


def _demo_here(settings: Settings, url: str) -> None:
    _show_demo(url, os.environ.get("ABMLL_API_KEY"), here=True)
    if settings.playground:
        out.print(f"Your own examples: {shown(url)}/playground in a browser. Ctrl-C stops the server.")


def _show_demo(url: str, api_key: str | None = None, *, here: bool = False) -> bool:
    """Send the demo request to the server at `url` and print its answer, or its error and False.

    A server on this machine, as `here` or the address says, is reached without a proxy.
    """
    from service.cli.tables import prediction_table  # noqa: PLC0415

    out.print(f"16 labelled support tickets and 6 new ones to POST {shown(url)}/v1/predict ...")
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport() if here or is_here(url) else None, timeout=600
        ) as client:
            headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
            response = client.post(f"{url}/v1/predict", json=demo_task.predict_body(), headers=headers)
        answer = response.raise_for_status().json()
    except httpx.HTTPStatusError as error:
        err.print(f"[red]The server refused:[/] {shown(error.response.text)}")
        return False
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
        # httpx raises the last three for an address, or a proxy of the environment, that it cannot
        # use.
        err.print(f"[red]No answer from {shown(url)}:[/] {shown(str(error))}", soft_wrap=True)
        return False
    out.print(prediction_table(answer, demo_task.INPUTS))
    return True


def is_here(url: str) -> bool:
    """Return whether the address is one of this machine, which proxies cannot reach."""
    host = httpx.URL(url).host
    return host in ("0.0.0.0", "::") or _is_this_machine(host)  # noqa: S104 - asked, not bound to


def _is_this_machine(host: str) -> bool:
    """Return whether the address is of this machine alone: others cannot reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
