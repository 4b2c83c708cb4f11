"""`abmll models`: the models that can be named in the settings."""

from __future__ import annotations

from service.cli.output import AsJson, show


def models(as_json: AsJson = False) -> None:
    """List the base models of the catalogue and the posteriors in the package."""
    from model_store.posteriors import shipped_posteriors  # noqa: PLC0415
    from model_store.pretrained.catalogue import CATALOGUE, DEFAULT_BASE  # noqa: PLC0415
    from service.cli.tables import models_table  # noqa: PLC0415

    rows = [
        {"name": base.name, "default": base.name == DEFAULT_BASE, "quantisation": base.quantisation}
        for base in CATALOGUE.values()
    ]
    answer = {"bases": rows, "posteriors": list(shipped_posteriors())}
    show(answer, models_table(answer), as_json)
