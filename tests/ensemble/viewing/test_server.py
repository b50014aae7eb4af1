"""What the server gives, and what it refuses."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from apps.core.errors import StateError
from ensemble.viewing import Stores, ViewServer, open_stores
from ensemble.viewing.server import parse_range
from tests.ensemble.viewing.samples import write_stores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ViewServer]:
    with ViewServer(open_stores(write_stores(folder)), "demo") as view:
        yield view


Answer = tuple[int, dict[str, str], bytes]


def ask(server: ViewServer, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def data(server: ViewServer, path: str, **headers: str) -> Answer:
    return ask(server, f"/v/{server.token}/data/{path}", **headers)


def test_link_leads_to_the_client_with_the_state(server: ViewServer) -> None:
    status, headers, _ = ask(server, server.url.partition(str(server.port))[2])
    assert status == 302
    page, _, state = headers["Location"].partition("#!")
    status, headers, content = ask(server, page)
    assert status == 200 and b"<script" in content and headers["Referrer-Policy"] == "no-referrer"
    status, _, content = ask(server, state.partition(str(server.port))[2])
    assert status == 200 and json.loads(content) == server.state()


def test_addresses_are_those_that_the_browser_uses(server: ViewServer) -> None:
    _, headers, _ = ask(server, f"/v/{server.token}/open", Host="localhost:8123")  # through ssh -L 8123:...
    assert headers["Location"].endswith(f"#!http://localhost:8123/v/{server.token}/state.json")
    _, _, content = ask(server, f"/v/{server.token}/state.json", Host="localhost:8123")
    assert json.loads(content)["layers"][0]["source"]["url"].startswith("zarr3://http://localhost:8123/")


def test_the_report_is_served_where_there_is_one(server: ViewServer, folder: Path) -> None:
    assert server.report_url is None and ask(server, f"/v/{server.token}/report")[0] == 404
    page = folder / "page.html"
    page.write_text("<h1>how</h1>")
    stores = replace(open_stores(Stores(image=str(folder / "image.zarr"))), report=page)
    with ViewServer(stores) as other:
        assert other.report_url == f"http://127.0.0.1:{other.port}/v/{other.token}/report"
        status, headers, content = ask(other, f"/v/{other.token}/report")
        assert (status, content) == (200, b"<h1>how</h1>") and headers["Content-Type"].startswith("text/html")
        assert ask(other, "/v/wrong/report")[0] == 403


@pytest.mark.parametrize(
    "path", ["/", "/v/", "/v/wrong/", "/v/wrong/state.json", "/v/wrong/data/image/zarr.json", "/events/wrong"]
)
def test_without_the_token_there_is_nothing(server: ViewServer, path: str) -> None:
    status, _, content = ask(server, path)
    assert status == 403 and content == b"Forbidden"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example"]
)
def test_other_hosts_are_refused(server: ViewServer, host: str) -> None:
    assert ask(server, f"/v/{server.token}/state.json", Host=host)[0] == 403


def test_tokens_differ_and_are_long(server: ViewServer) -> None:
    with ViewServer(server.stores) as other:
        assert other.token != server.token and len(other.token) >= 32


def test_files_of_stores_are_served_as_they_are(server: ViewServer, folder: Path) -> None:
    chunk = (folder / "image.zarr/0/c/0/0/0").read_bytes()
    status, headers, content = data(server, "image/0/c/0/0/0")
    assert (status, content, headers["Accept-Ranges"]) == (200, chunk, "bytes")
    status, headers, content = data(server, "image/0/c/0/0/0", Range="bytes=10-19")
    assert (status, content) == (206, chunk[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(chunk)}"
    assert data(server, "image/0/c/0/0/0", Range=f"bytes={len(chunk)}-")[0] == 416
    status, headers, content = ask(server, f"/v/{server.token}/data/image/0/c/0/0/0", "HEAD")
    assert (status, content, headers["Content-Length"]) == (200, b"", str(len(chunk)))


def test_compressed_files_are_found_under_their_plain_name(server: ViewServer, folder: Path) -> None:
    packed = gzip.compress(b"mesh")
    (folder / "meshes" / "5:0:all.gz").write_bytes(packed)
    status, headers, content = data(server, "meshes/5:0:all", Range="bytes=0-1")
    assert (status, headers["Content-Encoding"], content) == (200, "gzip", packed)


def test_object_without_mesh_or_skeleton_has_empty_ones(server: ViewServer) -> None:
    assert data(server, "meshes/77:0")[::2] == (200, b'{"fragments": []}')
    assert data(server, "skeletons/77")[::2] == (200, bytes(8))
    assert data(server, "meshes/77:0:all")[0] == data(server, "skeletons/nothing")[0] == 404


def test_synapses_are_served(server: ViewServer) -> None:
    status, _, content = data(server, "synapses/info")
    assert status == 200 and json.loads(content)["annotation_type"] == "LINE"
    assert data(server, "synapses/spatial0/0_0_0")[0] == 200
    assert data(server, "synapses/by_id/77")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "image/0/c/9/9/9",
        "image/../objects.zarr/zarr.json",
        "image/%2e%2e/synapses.parquet",
        "image//etc/passwd",
        "image/link/secret",
        "image/0",
        "image/",
        "image/%00",
        "image/" + "x" * 300,
        "other/zarr.json",
        "",
        "/etc/passwd",
    ],
)
def test_nothing_else_is_served(server: ViewServer, folder: Path, path: str) -> None:
    outside = folder / "outside"
    if not outside.is_dir():
        outside.mkdir()
        (outside / "secret").write_text("secret")
        (folder / "image.zarr" / "link").symlink_to(outside)
    assert data(server, path)[0] == 404


@pytest.mark.parametrize("name", ["../__init__.py", "nowhere.js", "%2e%2e/__init__.py", "client"])
def test_client_is_served_and_no_other_file_of_its_package(server: ViewServer, name: str) -> None:
    assert ask(server, f"/v/{server.token}/{name}")[0] == 404


def test_nothing_can_be_written(server: ViewServer) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, f"/v/{server.token}/data/image/zarr.json", method)[0] == 501


def test_taken_port_is_named(server: ViewServer) -> None:
    with pytest.raises(StateError, match=f"port {server.port}: .*give another --port"):
        ViewServer(server.stores, port=server.port)


def test_server_listens_on_this_machine_only(server: ViewServer) -> None:
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with pytest.raises(OSError):
            socket.create_connection((str(address), server.port), timeout=0.5).close()


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("bytes=0-3", range(4)),
        ("bytes=4-", range(4, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-30", range(10)),
        ("bytes=8-90", range(8, 10)),
        ("bytes=10-", range(10, 10)),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("rows=0-1", None),
    ],
)
def test_ranges(header: str | None, wanted: range | None) -> None:
    assert parse_range(header, 10) == wanted
