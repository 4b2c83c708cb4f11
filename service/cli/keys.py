"""`abmll keys`: the keys of tenants, and what each tenant may use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.failures import expected_errors_in_one_line
from service.cli.output import AsJson, err, show
from service.cli.settings_options import SettingsCommand, with_settings
from service.settings import Settings
from service.settings.values import SettingsError

if TYPE_CHECKING:
    from service.principals.keys_file import Key, Keys
    from service.principals.records import Limits, Scope

keys = typer.Typer(
    help="Keys for requests, in a file that running servers read again when it changes.",
    no_args_is_help=True,
)
Tenant = Annotated[str, typer.Argument(help="Whose it is: 1 to 64 of a-z, 0-9, '_' and '-'.")]


@keys.command(cls=SettingsCommand)
@with_settings("keys_file", "audit_log")
def add(
    settings: Settings,
    *,
    tenant: Tenant,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do: `predict`, `adapt`, `admin`; repeat it for several."),
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option(min=0, help="Days until it is no longer valid; by default it stays.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="What it is for; it is stored with the key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once: the file has a digest only.

    By default it has the scopes `predict` and `adapt`. The first key makes the file.
    """
    with expected_errors_in_one_line():
        from service.principals.keys_file import change_keys, make_key  # noqa: PLC0415

        expires = None
        if expires_days is not None:
            expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=expires_days)
        made = make_key(tenant, _scopes(scope or ["predict", "adapt"]), expires, note)

        def change(old: Keys) -> tuple[Keys, None]:
            return old.model_copy(update={"keys": (*old.keys, made.key)}), None

        path = _path(settings)
        change_keys(path, change)
        _audit(settings, made.key, "add")
        from rich.text import Text  # noqa: PLC0415

        show({**_row(made.key), "key": made.text}, Text(made.text), as_json)
        if not as_json:
            err.print(
                f"Key {made.key.id} of {tenant} is in {path} as a digest. This is the only time that it is shown.",
                highlight=False,
                soft_wrap=True,
            )


@keys.command("list", cls=SettingsCommand)
@with_settings("keys_file")
def list_keys(settings: Settings, *, as_json: AsJson = False) -> None:
    """List the keys, without what proves them, and the limits of tenants."""
    with expected_errors_in_one_line():
        from service.cli.tables import keys_table  # noqa: PLC0415
        from service.principals.keys_file import read_keys  # noqa: PLC0415

        found = read_keys(_path(settings))
        limits = {tenant: own.model_dump(exclude_none=True) for tenant, own in found.tenants.items()}
        answer = {"keys": [_row(key) for key in found.keys], "limits": limits}
        show(answer, keys_table(answer), as_json)


@keys.command(cls=SettingsCommand)
@with_settings("keys_file", "audit_log")
def revoke(
    settings: Settings,
    *,
    key_id: Annotated[str, typer.Argument(help="Id of the key: what stands after `abmll-` in it.")],
) -> None:
    """Revoke a key. Running servers refuse it within a second, and end its streams."""
    with expected_errors_in_one_line():
        from service.principals.keys_file import change_keys  # noqa: PLC0415

        def change(old: Keys) -> tuple[Keys, Key]:
            found = [key for key in old.keys if key.id == key_id and key.revoked is None]
            if not found:
                raise SettingsError(f"there is no key {key_id[:20]!r} that could be revoked")
            revoked = found[0].model_copy(update={"revoked": datetime.now(UTC).replace(microsecond=0)})
            rows = tuple(revoked if key.id == key_id else key for key in old.keys)
            return old.model_copy(update={"keys": rows}), revoked

        _audit(settings, change_keys(_path(settings), change), "revoke")


@keys.command(cls=SettingsCommand)
@with_settings("keys_file")
def limit(
    settings: Settings,
    *,
    tenant: Tenant,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")] = None,
    work_seconds_per_minute: Annotated[
        float | None, typer.Option(min=0.001, help="Most seconds of a worker's time a minute.")
    ] = None,
    adapters: Annotated[int | None, typer.Option(min=1, help="Most stored adapters.")] = None,
    stored_bytes: Annotated[int | None, typer.Option(min=1, help="Most bytes of stored adapters.")] = None,
) -> None:
    """Set all limits of a tenant. Those that are not given are lifted."""
    with expected_errors_in_one_line():
        from service.principals.keys_file import change_keys, check_tenant  # noqa: PLC0415
        from service.principals.records import Limits  # noqa: PLC0415

        check_tenant(tenant)
        own = Limits(
            requests_per_minute=requests_per_minute,
            work_seconds_per_minute=work_seconds_per_minute,
            adapters=adapters,
            stored_bytes=stored_bytes,
        )

        def change(old: Keys) -> tuple[Keys, None]:
            others: dict[str, Limits] = {**old.tenants, tenant: own}
            return old.model_copy(update={"tenants": others}), None

        change_keys(_path(settings), change)


def _path(settings: Settings) -> Path:
    if settings.keys_file is None:
        raise SettingsError("name the file of the keys by --keys-file or ABMLL_KEYS_FILE")
    return settings.keys_file


def _scopes(names: list[str]) -> frozenset[Scope]:
    from service.principals.records import Scope  # noqa: PLC0415

    known = [scope.value for scope in Scope]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is no scope: choose from {', '.join(known)}")
    return frozenset(map(Scope, names))


def _audit(settings: Settings, key: Key, detail: str) -> None:
    from service.principals.audit import AuditLog  # noqa: PLC0415
    from service.principals.records import Principal  # noqa: PLC0415

    log = AuditLog(settings.audit_log)
    log.write(Principal(key.tenant), "key", key.id, detail)
    log.close()


def _row(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"digest", "scopes"}) | {"scopes": sorted(key.scopes)}
