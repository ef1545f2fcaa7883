"""A report that follows a run: a server on this machine alone, whose page asks for what is new.

A look at the run directory costs a few calls of stat; only where something has changed are the files read on and the
figures made anew, at most once in `EVERY_S` seconds however many pages ask.
"""

from __future__ import annotations

import errno
import gzip
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from hcmegatron.config.errors import ConfigError
from hcmegatron.report.assemble import sections, title
from hcmegatron.report.inputs.run import Directory
from hcmegatron.report.page.html import Content, content, page

HOST, PORT = "127.0.0.1", 6007
EVERY_S = 2.0
NAMES = ("127.0.0.1", "localhost")


class Latest:
    """The newest content of a report, made anew when the run directories have changed.

    Attributes:
        made: how often it was.
    """

    def __init__(
        self,
        found: Sequence[Directory],
        compare: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directories, self._compare, self._clock = found, compare, clock
        self._lock = threading.Lock()
        self._seen: object = None
        self._looked = -EVERY_S
        self.made = 0
        self.title = ""
        self._content = Content("", {})

    def content(self) -> tuple[str, Content]:
        """Its stamp and itself."""
        with self._lock:
            if self._clock() - self._looked >= EVERY_S:
                self._looked = self._clock()
                seen = [directory.stamp() for directory in self._directories]
                if seen != self._seen:
                    runs = [directory.read() for directory in self._directories]
                    self._content = content(sections(runs, self._compare))
                    self.title, self._seen, self.made = title(runs), seen, self.made + 1
            return str(self.made), self._content


class Handler(BaseHTTPRequestHandler):
    """Answers / with the page and /content.json with what has changed since."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, latest: Latest, plotly: str) -> None:
        self.latest, self.plotly = latest, plotly
        super().__init__(*args)

    def do_GET(self) -> None:
        """The page, its content, or an answer in words."""
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        where = urlsplit(self.path)
        if host not in NAMES:  # a page elsewhere that has its name point here
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"ask 127.0.0.1 or localhost\n")
        elif where.path == "/":
            _, found = self.latest.content()
            text = page(self.latest.title, found, self.plotly, live=True)
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", text.encode())
        elif where.path == "/content.json":
            stamp, found = self.latest.content()
            if parse_qs(where.query).get("since") == [stamp]:
                self._answer(HTTPStatus.NO_CONTENT, "", b"")
            else:
                text = json.dumps({"stamp": stamp, **found._asdict()}, allow_nan=False)
                self._answer(HTTPStatus.OK, "application/json", text.encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is / alone\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        packed = body and "gzip" in (self.headers.get("Accept-Encoding") or "")
        body = gzip.compress(body, compresslevel=1) if packed else body
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page asks every two seconds."""


class Server(ThreadingHTTPServer):
    """A server whose reader may leave at any time."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that has gone is no error; what else happens is said."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def server(found: Sequence[Directory], compare: bool, port: int, plotly: str) -> Server:
    """A server that is bound, and not running yet.

    Raises:
        ConfigError: the port is taken, or not this user's to take.
    """
    try:
        return Server((HOST, port), partial(Handler, latest=Latest(found, compare), plotly=plotly))
    except OSError as error:
        what = {errno.EADDRINUSE: "is in use", errno.EACCES: "is not yours to use"}.get(
            error.errno, error.strerror
        )
        raise ConfigError(f"--port = {port} {what}; choose another, or 0 for any that is free") from None


def serve(found: Sequence[Directory], compare: bool, port: int, plotly: str) -> int:
    """Answer until Ctrl-C. Returns the exit status."""
    with server(found, compare, port, plotly) as running:
        try:
            print(f"http://{HOST}:{running.server_port}/  (Ctrl-C ends it)", flush=True)
            running.serve_forever()
        except KeyboardInterrupt:
            print("ended")
    return 0
