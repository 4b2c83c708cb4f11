"""`abmll open`: the playground of a running server, in the browser."""

from __future__ import annotations

import webbrowser

from model_store.terminal import shown
from service.address_file import running_server
from service.cli.failures import expected_errors_in_one_line
from service.cli.output import out
from service.cli.remote import Remote, Url
from service.cli.settings_options import with_settings
from service.settings import Settings


@with_settings("data_dir", "host", "port")
def open_playground(settings: Settings, *, url: Url = None) -> None:
    """Open the playground of a running server in the browser; without one, print the address.

    The server is that of --url, else the one that uses the data folder, else the one at --port.
    """
    with expected_errors_in_one_line():
        server = running_server(settings.data_dir)
        address = url or (server.url if server else f"http://{settings.host}:{settings.port}")
        remote = Remote(address, None, timeout_seconds=10)
        try:
            remote.page("/playground")
        finally:
            remote.close()
        place = f"{address.rstrip('/')}/playground"
        out.print(shown(place), soft_wrap=True, highlight=False)
        webbrowser.open(place)
