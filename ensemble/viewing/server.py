"""A web server on the loopback interface: neuroglancer's own client, and the files of named stores, read-only.

Every address begins with `/v/TOKEN/`; without the token there is nothing, and only requests that name this machine as
the host are answered, so that no page of another site can ask through the user's browser.  What is served: the client's
files (they come with the neuroglancer package; nothing is fetched from the network), `state.json`, `open` (which leads
to the client with that state), `report` (the page on how it was made, where there is one), and `data/NAME/...`: the
files of the stores, with byte ranges.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import re
import secrets
import threading
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

from apps.core.errors import StateError
from ensemble.viewing.glance import Glance, glance_at
from ensemble.viewing.link import State, viewer_state
from ensemble.viewing.stores import OpenStores

LOOPBACK = "127.0.0.1"
HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
CLIENT_FILE = re.compile(r"[a-z0-9][\w.-]*\.(js|css|wasm|html|map)")
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
BINARY = "application/octet-stream"
# Small objects have no mesh or skeleton; the client, told so by 404, would wait for it for ever.
NOTHING = {
    "meshes": (re.compile(r"\d+:0"), b'{"fragments": []}'),
    "skeletons": (re.compile(r"\d+"), bytes(8)),  # of no vertices and no edges
}
# The client keeps one connection open, on which it would be told of changes; a comment now and then keeps it so.
KEEP_ALIVE_S = 15.0
IDLE_S = 120.0
POLL_S = 0.1  # how long closing may take
BLOCK = 2**20


class ViewServer:
    """Serves some stores until it is closed.  Use as a context manager; `url` is the link to open.

    The port is free when None is given.  Raises StateError where a given port is taken.
    """

    def __init__(self, stores: OpenStores, title: str = "", port: int | None = None, token: str | None = None) -> None:
        self.stores, self.title = stores, title
        self.token = token or secrets.token_urlsafe(24)
        self.glance: Glance = glance_at(stores)
        self.folders = {name: folder.resolve() for name, folder in stores.folders.items()}
        self.closing = threading.Event()
        try:
            self._http = _Server((LOOPBACK, port or 0), _handler(self))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise StateError(f"port {port}: {error.strerror}; give another --port, or none for any free one") from error
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, args=(POLL_S,), name="viewer", daemon=True)

    @property
    def url(self) -> str:
        """The link that opens the viewer."""
        return f"{self._address(f'{LOOPBACK}:{self.port}')}/open"

    @property
    def report_url(self) -> str | None:
        """The link to the report; None where there is none."""
        return f"{self._address(f'{LOOPBACK}:{self.port}')}/report" if self.stores.report else None

    def state(self, host: str | None = None) -> State:
        """The viewer's state, with addresses as `host` (NAME:PORT) reaches them; by default as this machine does."""
        address = self._address(host or f"{LOOPBACK}:{self.port}")
        return viewer_state(self.stores, self.glance, f"{address}/data", self.title)

    def __enter__(self) -> ViewServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def wait(self) -> None:
        """Return when it is closed, which another thread does, or be interrupted."""
        self.closing.wait()

    def _address(self, host: str) -> str:
        return f"http://{host}/v/{self.token}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is nothing to report."""


def _handler(view: ViewServer) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"view": view})


def client_folder() -> Path:
    """Where the neuroglancer package keeps the built client; the package itself, slow to import, is not needed."""
    found = importlib.util.find_spec("neuroglancer")
    assert found is not None and found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "static" / "client"


class _Handler(BaseHTTPRequestHandler):
    view: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = "ensemble-view"
    sys_version = ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if not HOSTS.fullmatch(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        if path == "/favicon.ico":  # browsers ask for it by themselves
            self._send(b"", "text/plain", HTTPStatus.NO_CONTENT)
            return
        kind, _, rest = path.lstrip("/").partition("/")
        token, _, rest = rest.partition("/")
        if kind not in ("v", "events") or not secrets.compare_digest(token.encode(), self.view.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        if kind == "events":
            self._keep_open()
            return
        folder, _, below = rest.partition("/")
        answer: Callable[[], None] | None = {"open": self._open, "state.json": self._state, "report": self._report}.get(
            rest
        )
        if answer is not None:
            answer()
        elif folder == "data":
            self._data(below)
        else:
            self._client(rest or "index.html")

    def do_HEAD(self) -> None:
        self.do_GET()  # `_send` and `_file` leave the body out

    def _open(self) -> None:
        state = f"http://{self.headers['Host']}/v/{self.view.token}/state.json"
        self._send(b"", "text/plain", HTTPStatus.FOUND, {"Location": f"/v/{self.view.token}/#!{state}"})

    def _state(self) -> None:
        self._send(json.dumps(self.view.state(self.headers["Host"])).encode(), TYPES[".json"])

    def _report(self) -> None:
        if self.view.stores.report is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        self._file(self.view.stores.report, TYPES[".html"])

    def _client(self, name: str) -> None:
        file = client_folder() / name
        if not CLIENT_FILE.fullmatch(name) or not file.is_file():
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        self._file(file, TYPES.get(file.suffix, BINARY))

    def _data(self, path: str) -> None:
        name, _, below = path.partition("/")
        synapses = self.view.stores.synapses
        if name == "synapses" and synapses is not None:
            if below == "info":
                info = synapses.info(self.view.stores.grid.voxel_size_nm)
                self._send(json.dumps(info).encode(), TYPES[".json"])
                return
            content = synapses.file(below)
            if content is not None:
                self._send(content, BINARY)
                return
        elif name in self.view.folders:
            file = within(self.view.folders[name], below)
            if file is not None:
                self._file(file, TYPES.get(file.suffix, BINARY))
                return
            # cloud-volume writes meshes and skeletons compressed, under the name with .gz.
            packed = within(self.view.folders[name], f"{below}.gz")
            if packed is not None:
                self._file(packed, BINARY, {"Content-Encoding": "gzip"})
                return
            nothing = NOTHING.get(name)
            if nothing is not None and nothing[0].fullmatch(below):
                self._send(nothing[1], BINARY)
                return
        self._refuse(HTTPStatus.NOT_FOUND)

    def _file(self, file: Path, kind: str, headers: dict[str, str] | None = None) -> None:
        try:
            stream = file.open("rb")
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with stream:
            size = stream.seek(0, 2)
            wanted = None if headers else parse_range(self.headers.get("Range"), size)
            if wanted is not None and not wanted:
                self._send(b"", kind, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
                return
            part = wanted or range(size)
            status = HTTPStatus.OK if wanted is None else HTTPStatus.PARTIAL_CONTENT
            span = {} if wanted is None else {"Content-Range": f"bytes {part.start}-{part.stop - 1}/{size}"}
            self._head(status, kind, len(part), {"Accept-Ranges": "bytes", **span, **(headers or {})})
            if self.command != "HEAD":
                stream.seek(part.start)
                _copy(stream, self.wfile, len(part))

    def _keep_open(self) -> None:
        """An event stream without events."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            while not self.view.closing.wait(KEEP_ALIVE_S):
                self.wfile.write(b": \n\n")

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status.phrase.encode(), "text/plain", status)

    def _send(
        self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> None:
        self._head(status, kind, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        # The address holds the token: it goes to no other site, and a store that is made anew is seen anew.
        fixed = {"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Thousands of chunks are no news."""


def within(folder: Path, path: str) -> Path | None:
    """The file `path` in `folder` (resolved); None where there is none, or where it lies elsewhere, through `..` or a
    link.
    """
    try:
        file = (folder / path).resolve()
        return file if file.is_relative_to(folder) and file.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a NUL
        return None


def parse_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for: None for all of the file, an empty range for none that is there.

    Several ranges, and what is no range, are answered with all of the file, as the standard allows.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(size, int(last) + 1) if last else size)


def _copy(source: IO[bytes], target: Any, length: int) -> None:
    while length > 0:
        block = source.read(min(length, BLOCK))
        if not block:
            return  # the file was cut short while it was read: the client sees a connection that ends early
        target.write(block)
        length -= len(block)
