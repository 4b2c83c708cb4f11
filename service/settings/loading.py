"""Where the values of settings come from, and what is refused there.

The command line wins over the environment (`ABMLL_*`), which wins over a configuration file, which
wins over the default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.settings import Settings
from service.settings.values import ENV_PREFIX, SettingsError, is_empty

CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
"""The variable that names a configuration file, as the option `--config` does."""
_VARIABLES = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
_OF_CLIENTS = {"ABMLL_API_KEY"}
"""Variables that clients read, which the environment of a server may have too."""
_LINK = re.compile(r"(ABMLL[A-Z0-9_]*?)_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_[A-Z]+)?)?)")


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """Make the settings from `given`, the environment, the file `config` and the defaults.

    `given` has the values of the command line. What is empty is not given (see `is_empty`), there
    and in the environment. Raises `SettingsError`, which names the wrong setting, also for a
    variable `ABMLL_*` or a line of the file that is no setting.
    """
    _refuse_links(os.environ)
    known = _VARIABLES | _OF_CLIENTS | {CONFIG_VARIABLE}
    unknown = sorted(
        name
        for name, value in os.environ.items()
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known and not is_empty(value)
    )
    if unknown:
        raise SettingsError(f"unknown setting in the environment: {unknown[0]}")
    from_file = _read_config(config)
    try:
        return Settings(**from_file | {name: value for name, value in given.items() if not is_empty(value)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"setting {first['loc'][0] if first['loc'] else 'workers'}: {message}") from error


def _read_config(path: Path | None) -> dict[str, Any]:
    """Return the settings of a file in TOML that the environment does not set.

    Without `path`, the environment may name the file. Raises `SettingsError`.
    """
    named = path or os.environ.get(CONFIG_VARIABLE, "").strip()
    if not named:
        return {}
    try:
        values = tomllib.loads(Path(named).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"the configuration file {named} cannot be read: {reason}") from error
    if unknown := sorted(values.keys() - Settings.model_fields.keys()):
        raise SettingsError(f"unknown setting in the configuration file {named}: {unknown[0]}")
    set_there = {name.upper() for name, value in os.environ.items() if not is_empty(value)}
    return {name: value for name, value in values.items() if f"{ENV_PREFIX}{name}".upper() not in set_there}


def _refuse_links(environment: Mapping[str, str]) -> None:
    """Raise `SettingsError` for a variable that Kubernetes sets for a Service beside the server.

    It sets them for each Service of the namespace: one named `abmll` gives `ABMLL_PORT`, with an
    address that is no port, and `ABMLL_SERVICE_HOST`.
    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    for name, value in sorted(environment.items()):
        link = _LINK.fullmatch(name)
        if link and (name not in _VARIABLES or "://" in value):
            service = link[1].lower().replace("_", "-")
            raise SettingsError(
                f"{name}={value!r} in the environment is a link that Kubernetes sets for the Service "
                f"{service!r}, not a setting of this server. Write `enableServiceLinks: false` into the "
                "pod's spec, or rename the Service"
            )
