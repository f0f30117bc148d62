"""The API for tokens: make one, see which there are, take one back."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from easyjobs.domain.job import QUEUE_NAME
from easyjobs.domain.tokens import Token
from easyjobs.errors import LONGEST_S, InvalidArguments
from easyjobs.http import schemas, views
from easyjobs.http.auth import MAX_QUEUES, TOKEN_ID, Scope, check_bond
from easyjobs.http.guard import ProblemRoute, made, needs
from easyjobs.http.requests import Disconnected, read_body
from easyjobs.http.services import Services

MAX_BODY: Final = 16 * 1024
Id = Annotated[str, Path(pattern=f"^{TOKEN_ID.pattern}$", description="the token's id: its second part, after `ej2.`")]
_PROBLEMS: Final = {401: "A token is needed", 403: "Not allowed", 413: "Too large", 415: "Compressed", 503: "Not now"}


class _Wanted(BaseModel):
    """A token to be made. `expires_s`: for so many seconds; null: for ever. `queues`: it reaches these only; null: all."""

    model_config = ConfigDict(extra="forbid")

    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope))
    expires_s: int | None = Field(default=30 * 86_400, ge=1, le=LONGEST_S, strict=True)
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,64}$")
    queues: list[str] | None = Field(default=None, min_length=1, max_length=MAX_QUEUES)

    @model_validator(mode="after")
    def _check_bond(self) -> Self:
        if self.queues is not None:
            check_bond(self.scopes, self.queues)
        return self


_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "scopes": {
                            "type": "array",
                            "items": {"enum": [scope.value for scope in Scope]},
                            "minItems": 1,
                            "maxItems": len(Scope),
                        },
                        "expires_s": {"type": ["integer", "null"], "minimum": 1, "maximum": LONGEST_S, "default": 30 * 86_400},
                        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{0,64}$", "default": ""},
                        "queues": {
                            "type": ["array", "null"],
                            "items": {"type": "string", "pattern": f"^{QUEUE_NAME.pattern}$"},
                            "minItems": 1,
                            "maxItems": MAX_QUEUES,
                            "default": None,
                            "description": "it reaches these only; null: all. Not with the scope admin",
                        },
                    },
                    "required": ["scopes"],
                    "additionalProperties": False,
                }
            }
        },
    }
}
_UNFIT: Final = schemas.unfit("It cannot be meant: nothing is made")


def tokens_router(services: Services, path: str) -> APIRouter:
    """Routes below `<path>/api/v1/tokens`, for the scope admin."""
    router = APIRouter(prefix=f"{path}/api/v1/tokens", tags=["easyjobs"], route_class=ProblemRoute)
    admin = [Depends(needs(services.access, Scope.ADMIN))]
    access, store, clock = services.access, services.store, services.clock
    refusals = schemas.problems(_PROBLEMS, 401, 403, 503)

    def view(token: Token) -> dict[str, Any]:
        return {
            "id": token.id,
            "name": token.name,
            "scopes": token.scopes.split("+") if token.scopes else [],
            "queues": token.queues.split("+") if token.queues else None,
            "expires_at": views.instant(token.expires_at or None),
            "created_at": views.instant(token.created_at),
            "revoked_at": views.instant(token.revoked_at),
        }

    @router.post(
        "",
        status_code=201,
        summary="Make a token",
        dependencies=admin,
        openapi_extra=_BODY,
        responses={
            201: schemas.content(schemas.NewToken, "Made"),
            422: _UNFIT,
            **schemas.problems(_PROBLEMS, 401, 403, 413, 415, 503),
        },
    )
    async def make_token(request: Request) -> Response:
        """It is shown here and never again: the manager keeps its id, name, scopes, queues and expiry only."""
        # Not a parameter: FastAPI reads a body whole, whoever sends it, before it asks who is there.
        try:
            body = await read_body(dict(request.scope["headers"]), request.receive, MAX_BODY, "the request")
        except Disconnected:
            return Response(status_code=499)
        try:
            wanted = _Wanted.model_validate_json(body or b"{}")
        except ValidationError as why:
            found = [
                {**error, "loc": ["body", *error["loc"]]}
                for error in why.errors(include_url=False, include_input=False, include_context=False)
            ]
            raise InvalidArguments("the token", found) from None
        expires_at = 0 if wanted.expires_s is None else clock.now() // 1_000_000 + wanted.expires_s
        id = os.urandom(8).hex()
        text = access.make(wanted.scopes, expires_at, wanted.name, id, wanted.queues)
        queues = "+".join(sorted(set(wanted.queues or ())))
        await store.keep_tokens([Token(id, wanted.name, "+".join(sorted(set(wanted.scopes))), expires_at * 1_000_000, queues=queues)])
        made(request, id)
        said = views.encode({"id": id, "token": text})
        return Response(said, 201, {"Cache-Control": "no-store"}, "application/json")

    @router.get("", summary="Tokens", dependencies=admin, responses={200: schemas.content(schemas.TokenPage, "Newest first"), **refusals})
    async def list_tokens() -> Response:
        """Those that were made here, and those that were taken back. One that `easyjobs token --scope …` made is not known before that."""
        return Response(views.encode({"items": [view(token) for token in await store.tokens()]}), media_type="application/json")

    @router.delete("/{id}", status_code=204, summary="Take a token back", dependencies=admin, responses=refusals)
    async def revoke_token(id: Id) -> Response:
        """It holds no longer, here at once and at other managers of the same database within a second or two. Also one that is not listed."""
        await store.revoke_tokens([Token(id, "", "", 0)])
        access.revoked.add(id)
        return Response(status_code=204)

    return router
