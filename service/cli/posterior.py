"""`abmll posterior`: artifacts to and from a folder or the Hugging Face hub, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_store.terminal import shown
from service.cli.failures import expected_errors_in_one_line
from service.cli.output import out as console

if TYPE_CHECKING:
    from model_store.posterior_copies import Copy

posterior = typer.Typer(
    help="Pass global posteriors on: to and from a folder, or a repository of the Hugging Face hub.",
    no_args_is_help=True,
)


@posterior.command()
def publish(
    source: Annotated[str, typer.Argument(help="Id of a posterior in the package, or its folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; it must be empty or not exist.")] = None,
    hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Hub repository to send it to, made where it is not there. HF_TOKEN names who sends.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new hub repository is seen by its owner only.")
    ] = False,
    message: Annotated[
        str | None, typer.Option(help="Message of the hub's commit; by default the posterior's id.")
    ] = None,
) -> None:
    """Check a posterior and copy it to a folder, or send it to the hub: tensors, manifest, card."""
    if (out is None) == (hub is None):
        raise typer.BadParameter("give exactly one of --out and --hub")
    if hub is None and (private or message is not None):
        raise typer.BadParameter("--private and --message are for --hub")
    with expected_errors_in_one_line():
        from model_store.posterior_copies import publish_to_folder, publish_to_hub  # noqa: PLC0415

        if out is not None:
            copied = publish_to_folder(source, out.resolve())
        else:
            text = message or f"Posterior {Path(source).name}"
            copied = publish_to_hub(source, str(hub), private=private, message=text)
    _show(copied, copied.place if out is None else str(out))


@posterior.command()
def pull(
    source: Annotated[
        str, typer.Argument(help="A folder, or OWNER/NAME[@REVISION] of the Hugging Face hub.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not exist.")],
    digest: Annotated[
        str | None, typer.Option(help="SHA-256 that the posterior must have, as its publisher says it.")
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="Most megabytes of its tensors.")] = 2048,
) -> None:
    """Fetch a posterior, check it, and write it to a folder for `abmll serve --posterior FOLDER`.

    Only safetensors, the manifest and the card are downloaded. Nothing is written unless the
    tensors match the digest in the manifest.
    """
    with expected_errors_in_one_line():
        from model_store.posterior_copies import pull as pulled  # noqa: PLC0415
        from model_store.progress import progress_bar  # noqa: PLC0415

        with progress_bar() as report:
            copied = pulled(source, out.resolve(), digest=digest, max_bytes=max_mb * 10**6, report=report)
    _show(copied, str(out))
    console.print(f"Serve it with: abmll serve --posterior {shown(str(out))}", soft_wrap=True)


def _show(copied: Copy, place: str) -> None:
    manifest = copied.manifest
    base = manifest.base
    console.print(
        f"Posterior {shown(manifest.id)} from {shown(copied.origin)} is in {shown(place)}.\n"
        f"Its base: {shown(base.id)} at {shown(base.revision)} in {shown(base.quantisation)}.\n"
        f"Its digest: {shown(manifest.digest)}",
        soft_wrap=True,
        highlight=False,
    )
