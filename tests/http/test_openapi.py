from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field, create_model

from easyjobs.http import docs
from easyjobs.http.openapi import point_to_components
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock
from tests.http.conftest import BASE, LOCAL, Manager, build, client_of


class Colour(StrEnum):
    RED = "red"


class Address(BaseModel):
    street: str


Planet = create_model("Address", planet=(int, ...))  # another model of the same name


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Person(BaseModel):
    """Somebody."""

    name: str
    address: Address | None = None
    pet: Cat | Dog = Field(discriminator="kind", default=Cat(kind="cat"))


@dataclass
class Receipt:
    number: int
    to: Address


async def greet(person: Person, colour: Colour = Colour.RED, *, times: int = 1) -> Receipt:
    """Greet a person.

    Does so *often*.
    """
    return Receipt(1, person.address or Address(street=""))


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        found |= set(node["discriminator"].get("mapping", {}).values()) if isinstance(node.get("discriminator"), dict) else set()
        return found.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def check_whole(document: dict[str, Any]) -> None:
    """Every reference leads somewhere, every operation has its own id, every component a name that OpenAPI allows."""
    for ref in references(document):
        node: Any = document
        assert ref.startswith("#/")
        for part in ref[2:].split("/"):
            node = node[part]
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in document["components"]["schemas"])


async def test_a_task_is_an_operation_of_its_queue(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(greet, "mail")
    document = (await http.get("/openapi.json")).json()
    check_whole(document)
    operation = document["paths"]["/mail/task/greet"]["post"]
    assert operation["tags"] == ["mail"]
    assert operation["operationId"] == "mail.greet"
    assert operation["summary"] == "Greet a person."
    assert "*often*" in operation["description"]
    body = operation["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert body["required"] is True
    assert list(schema["properties"]) == ["person", "colour", "times"]
    assert schema["required"] == ["person"]
    assert schema["properties"]["person"]["$ref"] == "#/components/schemas/mail.greet.Person"
    assert document["components"]["schemas"]["mail.greet.Person"]["properties"]["name"]["type"] == "string"
    assert {"200", "422"} <= operation["responses"].keys()
    assert document["components"]["securitySchemes"]["easyjobs"]["scheme"] == "bearer"
    assert "mail.greet.returns.Address" in document["components"]["schemas"]
    assert not [path for path in document["paths"] if "{namespace}" in path or path.startswith("/task/")]


async def test_tasks_appear_and_change_without_a_restart(manager: Manager, http: httpx2.AsyncClient) -> None:
    def first(a: int) -> None: ...

    def second(a: int, b: str) -> None: ...

    assert "/DEFAULT/task/f" not in (await http.get("/openapi.json")).json()["paths"]
    for fn, names in ((first, ["a"]), (second, ["a", "b"])):
        await manager.offer(fn, name="f")
        document = (await http.get("/openapi.json")).json()
        operation = document["paths"]["/DEFAULT/task/f"]["post"]
        assert list(operation["requestBody"]["content"]["application/json"]["schema"]["properties"]) == names


async def test_equal_names_in_two_tasks_and_in_the_app_do_not_clash(store: MemoryStore, clock: FakeClock) -> None:
    app = FastAPI()

    @app.post("/own")
    async def own(address: Planet) -> Planet:  # type: ignore[valid-type]
        return address

    manager = build(app, store, clock)

    def with_a(x: Person) -> None: ...

    def with_b(x: Planet) -> None: ...  # type: ignore[valid-type]

    await manager.offer(with_a)
    await manager.offer(with_b)
    document = app.openapi()
    check_whole(document)
    schemas = document["components"]["schemas"]
    assert list(schemas["Address"]["properties"]) == ["planet"]
    assert list(schemas["DEFAULT.with_a.Address"]["properties"]) == ["street"]
    assert list(schemas["DEFAULT.with_b.Address"]["properties"]) == ["planet"]


async def test_the_document_is_made_once_per_version(manager: Manager) -> None:
    await manager.offer(greet)
    first = manager.app.openapi()
    assert manager.app.openapi() is first
    await manager.offer(greet, "other")
    assert manager.app.openapi() is not first


async def test_an_operation_is_made_once_per_task(manager: Manager) -> None:
    for number in range(3):
        await manager.offer(greet, name=f"task_{number}")
    before = manager.app.openapi()["paths"]
    await manager.offer(greet, name="another")
    after = manager.app.openapi()["paths"]
    for number in range(3):
        assert after[f"/DEFAULT/task/task_{number}"]["post"] is before[f"/DEFAULT/task/task_{number}"]["post"]


async def test_the_users_own_openapi_is_kept(store: MemoryStore, clock: FakeClock) -> None:
    app = FastAPI()

    def custom() -> dict[str, Any]:
        from fastapi.openapi.utils import get_openapi

        if not app.openapi_schema:
            app.openapi_schema = get_openapi(title="Mine", version="7", routes=app.routes)
            app.openapi_schema["info"]["x-logo"] = "logo"
        return app.openapi_schema

    app.openapi = custom  # type: ignore[method-assign]
    custom()
    manager = build(app, store, clock)
    await manager.offer(greet)
    document = app.openapi()
    check_whole(document)
    assert document["info"]["x-logo"] == "logo"
    assert "/DEFAULT/task/greet" in document["paths"]


async def test_a_task_without_parameters_has_no_body(manager: Manager) -> None:
    def nothing() -> None: ...

    await manager.offer(nothing)
    assert "requestBody" not in manager.app.openapi()["paths"]["/DEFAULT/task/nothing"]["post"]


async def test_neither_secret_nor_token_is_in_the_document(manager: Manager, http: httpx2.AsyncClient) -> None:
    from tests.http.conftest import SECRET

    await manager.offer(greet)
    assert SECRET not in (await http.get("/openapi.json")).text


def test_data_in_a_schema_is_no_reference() -> None:
    schema = {
        "properties": {"$ref": {"const": {"$ref": "#/$defs/X"}}, "a": {"$ref": "#/$defs/X", "default": {"$ref": "#/$defs/X"}}},
        "examples": [{"$ref": "#/$defs/X"}],
    }
    moved = point_to_components(schema, "p.")
    assert moved["properties"]["$ref"] == {"const": {"$ref": "#/$defs/X"}}
    assert moved["properties"]["a"] == {"$ref": "#/components/schemas/p.X", "default": {"$ref": "#/$defs/X"}}
    assert moved["examples"] == schema["examples"]


# --- /docs ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "count"), [("/docs", 3), ("/redoc", 2)])
async def test_docs_name_no_other_host(manager: Manager, http: httpx2.AsyncClient, url: str, count: int) -> None:
    page = await http.get(url)
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == count
    for file in files:
        answer = await http.get(file)
        assert answer.status_code == 200
        assert answer.content
        assert (await http.get(file, headers={"If-None-Match": answer.headers["etag"]})).status_code == 304


async def test_docs_below_a_prefix_point_below_it(store: MemoryStore, clock: FakeClock) -> None:
    app = FastAPI()
    build(app, store, clock, path="/app")
    transport = httpx2.ASGITransport(app=app, client=LOCAL, root_path="/behind")
    async with httpx2.AsyncClient(transport=transport, base_url=BASE + "/behind") as http:
        text = (await http.get("/docs")).text
        assert "/behind/app/static/swagger-ui/swagger-ui-bundle.js" in text
        assert "/behind/openapi.json" in text
        text = (await http.get("/redoc")).text
        assert "/behind/app/static/redoc/redoc.standalone.js" in text
        assert "/behind/openapi.json" in text
        assert (await http.get("/app/static/swagger-ui/LICENSE")).status_code == 200


@pytest.mark.parametrize("how", [{"docs_url": None, "redoc_url": None}, {"openapi_url": None}])
async def test_an_app_without_docs_gets_none(store: MemoryStore, clock: FakeClock, how: dict[str, Any]) -> None:
    app = FastAPI(**how)
    build(app, store, clock)
    async with client_of(app) as http:
        assert (await http.get("/docs")).status_code == 404
        assert (await http.get("/redoc")).status_code == 404


async def test_docs_of_the_users_own_making_stay(store: MemoryStore, clock: FakeClock) -> None:
    app = FastAPI(docs_url=None, redoc_url=None)

    @app.get("/docs")
    @app.get("/redoc")
    async def mine() -> str:
        return "mine"

    build(app, store, clock)
    async with client_of(app) as http:
        for url in ("/docs", "/redoc"):
            answer = await http.get(url)
            assert answer.json() == "mine"
            assert "content-security-policy" not in answer.headers


async def test_the_pages_load_from_the_hosts_that_the_app_names_and_from_no_others(store: MemoryStore, clock: FakeClock) -> None:
    app = FastAPI(
        title="A <script>",
        description="![logo](https://cdn.example/logo.png)",
        servers=[{"url": "http://api.example:8080/v1"}],
        swagger_ui_parameters={"validatorUrl": "https://validator.example/check"},
    )
    manager = build(app, store, clock)

    def task() -> None:
        """![seen](https://evil.example/seen.png)"""

    await manager.offer(task)
    async with client_of(app) as http:
        assert "evil.example" in (await http.get("/openapi.json")).text
        for url, names in (("/docs", ["https://validator.example"]), ("/redoc", [])):
            answer = await http.get(url)
            policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
            assert set(policy["default-src"].split()) == {"'self'", "https://cdn.example", "http://api.example:8080", *names}
            nonce = policy["script-src"].removeprefix("'nonce-").removesuffix("'")
            assert len(nonce) >= 22
            assert answer.text.count(f'<script nonce="{nonce}"') >= 1
            assert nonce not in (await http.get(url)).text, "a nonce holds once"


def test_a_server_of_many_names_may_be_any() -> None:
    assert docs._origins("https://{region}.example.com/x, http://a.example. and https://b:1?c") == [
        "http://a.example",
        "https:",
        "https://b:1",
    ]


async def test_files_outside_the_static_directory_cannot_be_read(manager: Manager, http: httpx2.AsyncClient) -> None:
    for path in ("../auth.py", "%2e%2e/auth.py", "swagger-ui/../../auth.py", "..%2fauth.py"):
        assert (await http.get(f"/jobs/static/{path}")).status_code == 404


def test_redoc_is_shipped_with_its_licence() -> None:
    assert {file.name for file in (docs.STATIC / "redoc").iterdir()} == {
        "LICENSE",
        "redoc.standalone.js",
        "redoc.standalone.js.LICENSE.txt",
    }


def test_swagger_ui_is_shipped_with_its_licence() -> None:
    names = {file.name for file in (docs.STATIC / "swagger-ui").iterdir()}
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js", "swagger-ui-bundle.js.LICENSE.txt", "swagger-ui.css"} <= names
