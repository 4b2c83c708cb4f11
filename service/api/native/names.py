"""The routes of names: point one to an adapter, show, roll back, delete."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request

from service import schemas
from service.api.error_answers import documented_errors
from service.api.http import engine_of
from service.api.json_bodies import JsonRoute
from service.engine.names import versioned

if TYPE_CHECKING:
    from model_store.adapters.names import NameHistory, Version

router = APIRouter(prefix="/v1/names", route_class=JsonRoute, tags=["names"])
_CHANGE_ERRORS = documented_errors(400, 404, 409, 413, 415, 422, 500, 503, 507)


@router.put("/{name}", responses=_CHANGE_ERRORS, response_model_exclude_none=True)
async def put_name(name: str, body: schemas.PutNameRequest, request: Request) -> schemas.Name:
    """Point a name to an adapter, by a new version of the name. It is on disk by then.

    A name has 1 to 64 of a-z, 0-9, `.`, `_` and `-`. It begins with a letter, not with `adp_`, and
    it is not that of the base model. Each request makes a version, also an equal one.
    """
    engine = engine_of(request)
    history = await engine.names.put(
        name, body.adapter_id, engine.served.base.id, if_version=body.if_version, note=body.note
    )
    engine.audit("name", name, "put")
    return name_object(history, {body.adapter_id})


@router.get("", responses=documented_errors(422, 500), response_model_exclude_none=True)
async def list_names(
    request: Request,
    after: Annotated[str | None, Query(description="Name after which the page begins.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most names of the page.")] = 100,
) -> schemas.NameList:
    """List the names of this server's adapters, in their order."""
    found = await engine_of(request).names.page(after, limit)
    data = [name_object(history, found.manifests) for history in found.histories]
    return schemas.NameList(data=data, has_more=found.has_more)


@router.get("/{name}", responses=documented_errors(404, 422, 500), response_model_exclude_none=True)
async def get_name(
    name: str,
    request: Request,
    before: Annotated[int | None, Query(ge=1, description="Number before which the page ends.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most versions of the page.")] = 100,
) -> schemas.NameWithHistory:
    """Show a name with its versions, the newest first."""
    found = await engine_of(request).names.history(name, before, limit)
    (history,) = found.histories
    return schemas.NameWithHistory(
        **dict(name_object(history, found.manifests)),
        history=[version_object(name, version, found.manifests) for version in found.versions],
        has_more=found.has_more,
    )


@router.post("/{name}/rollback", responses=_CHANGE_ERRORS, response_model_exclude_none=True)
async def rollback_name(name: str, body: schemas.RollbackRequest, request: Request) -> schemas.Name:
    """Point a name to the adapter of an earlier version, by a new version."""
    engine = engine_of(request)
    history = await engine.names.rollback(name, body.version, if_version=body.if_version, note=body.note)
    engine.audit("name", name, "rollback")
    return name_object(history, {history.versions[-1].adapter_id})


@router.delete("/{name}", responses=documented_errors(404, 422, 500, 507))
async def delete_name(name: str, request: Request) -> schemas.DeletedName:
    """Delete a name with its versions. The adapters stay, and its numbers do not come again."""
    engine = engine_of(request)
    await engine.names.delete(name)
    engine.audit("name", name, "delete")
    return schemas.DeletedName(name=name)


def name_object(history: NameHistory, there: Container[str]) -> schemas.Name:
    """Render a name that has versions. `there` are the ids of adapters that were not deleted."""
    return schemas.Name(name=history.name, current=version_object(history.name, history.versions[-1], there))


def version_object(name: str, version: Version, there: Container[str]) -> schemas.NameVersion:
    """Render a version of a name; `there` as for `name_object`."""
    return schemas.NameVersion(
        model=versioned(name, version),
        version=version.number,
        adapter_id=version.adapter_id,
        available=version.adapter_id in there,
        created=version.created,
        note=version.note,
        rollback_of=version.rollback_of,
    )
