"""`abmll doctor`: whether this machine can run the model, one line for each check."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from abmll.errors import AbmllError
from model_store.errors import StoreError
from model_store.terminal import shown
from service.address_file import running_server
from service.cli.output import AsJson, out, show
from service.cli.settings_options import with_settings
from service.errors import ServiceError
from service.settings import Settings

LIBRARIES = ("torch", "transformers", "tokenizers", "bitsandbytes")
LEAST_FREE_BYTES = 500_000_000
_CAPABILITIES = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "bf16")


@dataclass(frozen=True)
class Check:
    """What was found of one subject. `remedy` is what to do where it is not `ok`, else empty."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


@with_settings(
    "model",
    "posterior",
    "readout_scale",
    "quantisation",
    "dtype",
    "device",
    "threads",
    "data_dir",
    "cache_dir",
)
def doctor(
    settings: Settings,
    *,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Leave out the self-test, which loads the model.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check devices, processor, caches, folders and a running server, and answer known questions.

    Exits with 1 where a check fails; its line says what to do. Nothing is downloaded.
    """
    checks: list[Check] = []
    for check in all_checks(settings, no_model=no_model):
        checks.append(check)
        if not as_json:
            out.print(_line(check), soft_wrap=True, highlight=False)
    if as_json:
        show({"checks": [asdict(check) for check in checks]}, "", as_json)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _line(check: Check) -> str:
    state = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
    remedy = f" -> {shown(check.remedy)}" if check.remedy else ""
    return f"{state} {check.name}: {shown(check.found)}{remedy}"


def all_checks(settings: Settings, *, no_model: bool) -> Iterator[Check]:
    """Yield the checks, each when it is done; an expected error is a check that failed."""
    subjects: dict[str, Callable[[Settings], Check]] = {
        "versions": _versions,
        "devices": _devices,
        "processor": _processor,
        "threads": _threads,
        "memory": _memory,
        "posterior": _posterior,
    }
    for name, subject in subjects.items():
        yield _tried(name, subject, settings)
    there = True
    for check in _needed(settings):
        there = there and check.ok
        yield check
    yield _tried(
        "cache folder", lambda own: _folder("cache folder", _cache_dir(own), "--cache-dir"), settings
    )
    yield _tried("data folder", lambda own: _folder("data folder", own.data_dir, "--data-dir"), settings)
    yield _tried("server", _server, settings)
    if no_model:
        return
    if not there:
        yield Check("self-test", True, "left out, since the model is not there")
        return
    yield _tried("self-test", _self_test, settings)


def _tried(name: str, subject: Callable[[Settings], Check], settings: Settings) -> Check:
    try:
        return subject(settings)
    except (AbmllError, StoreError, ServiceError) as error:
        return Check(name, False, str(error), "see the message")
    except Exception as error:  # whatever is wrong with this machine
        return Check(name, False, f"{type(error).__name__}: {error}", "report it, with the lines above")


def _versions(settings: Settings) -> Check:
    found, missing = [f"Python {platform.python_version()}"], []
    for name in ("abmll-serve", *LIBRARIES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    lacks = [f"no {name}" for name in missing]
    remedy = "install abmll-serve with its dependencies: pip install ." if missing else ""
    return Check("versions", not missing, ", ".join([*found, *lacks]), remedy)


def _devices(settings: Settings) -> Check:
    from model_store.devices import usable_devices  # noqa: PLC0415
    from model_store.pretrained.convert import compute_dtype  # noqa: PLC0415

    there = usable_devices()
    if settings.device not in there:
        remedy = (
            f"name one of these by --device; {settings.device} needs a GPU, its driver and a torch for it"
        )
        return Check("devices", False, f"{', '.join(there)}, and no {settings.device}", remedy)
    dtype = str(compute_dtype(settings.device)).removeprefix("torch.")
    return Check("devices", True, f"{', '.join(there)}; {settings.device} computes in {dtype}")


def _processor(settings: Settings) -> Check:
    import torch  # noqa: PLC0415

    there = torch.cpu.get_capabilities()
    has = [name for name in _CAPABILITIES if there.get(name)]
    bf16 = any(name.endswith("bf16") for name in has)
    note = "" if bf16 else "; without bf16 it computes in float32, which is slower than with it"
    return Check(
        "processor", True, f"{platform.machine()}: {', '.join(has) or 'no vector instructions'}{note}"
    )


def _threads(settings: Settings) -> Check:
    import torch  # noqa: PLC0415

    count, cores = settings.threads or torch.get_num_threads(), os.cpu_count() or 1
    found = f"{count} of {cores} processors"
    if count > cores:
        return Check("threads", False, found, f"threads wait for each other: --threads {cores}, or fewer")
    return Check("threads", True, found)


def _memory(settings: Settings) -> Check:
    from model_store.process_memory import available_bytes  # noqa: PLC0415

    free = available_bytes()
    if free < 1 << 30:
        remedy = "end other programs: the embedded model needs about 1 GB"
        return Check("memory", False, f"{free / 1e9:.1f} GB free", remedy)
    return Check("memory", True, f"{free / 1e9:.1f} GB free")


def _posterior(settings: Settings) -> Check:
    from service.executors.loading import choose_posterior  # noqa: PLC0415

    found = choose_posterior(settings)
    return Check("posterior", True, "untrained" if found is None else found.manifest.id)


def _needed(settings: Settings) -> Iterator[Check]:
    from service.cli.fetch import needed  # noqa: PLC0415

    try:
        wanted = needed(settings)
    except (AbmllError, StoreError) as error:
        yield Check("base model", False, str(error), "name another by --model; `abmll models` lists them")
        return
    for one in wanted:
        folder = one.cached()
        if folder is None:
            yield Check(one.what, False, f"{one.name} is not there, whole", "abmll fetch")
        else:
            yield Check(one.what, True, f"{one.name} in {folder}")


def _cache_dir(settings: Settings) -> Path:
    from model_store.pretrained.bases import default_cache_dir  # noqa: PLC0415

    return settings.cache_dir or default_cache_dir()


def _folder(name: str, folder: Path, option: str) -> Check:
    """Check that files can be written to a folder, or to the one in which it will be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    found = f"{folder}{'' if there == folder else ', which is made at the first use'}"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, False, f"{found}: no right to write", f"name another by {option}")
    free = shutil.disk_usage(there).free
    found += f"; {free / 1e9:.1f} GB free"
    if free < LEAST_FREE_BYTES:
        return Check(name, False, found, f"make room, or name a folder of another disk by {option}")
    return Check(name, True, found)


def _server(settings: Settings) -> Check:
    from service.cli.remote import Remote  # noqa: PLC0415

    server = running_server(settings.data_dir)
    if server is None:
        return Check("server", True, "none uses the data folder")
    remote = Remote(server.url, None, timeout_seconds=10)
    try:
        remote.request("GET", "/readyz", tries=1)
    except (AbmllError, ServiceError) as error:
        remedy = f"wait until it is ready, or end process {server.process} and start it again"
        return Check("server", False, f"{server.url} uses the data folder: {error}", remedy)
    finally:
        remote.close()
    return Check("server", True, f"{server.url} uses the data folder and is ready")


def _self_test(settings: Settings) -> Check:
    from service.cli.self_test import run_self_test  # noqa: PLC0415

    found, right = run_self_test(settings)
    remedy = "" if right else "abmll fetch --check; if all is there, report it with the lines above"
    return Check("self-test", right, found, remedy)
