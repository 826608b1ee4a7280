"""A real web server for tests: serves files from memory with ETag or Last-Modified, counts what it sends."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files`, their content by path.

    Attributes:
        files: Content by path, as in `{"/train.csv": b"..."}`; may change at any time.
        tell: Which header tells versions apart: "ETag", "Last-Modified" or none.
        status: Answered to every request in place of what was asked for, if not 0.
        truncate: Whether only the first half of each file is sent.
        no_head: Whether requests for headers alone are refused, as signed URLs do.
        asked: Method and path of every request so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.tell = "ETag"
        self.modified = "Mon, 02 Mar 2026 10:00:00 GMT"
        self.status = 0
        self.truncate = False
        self.no_head = False
        self.asked: list[tuple[str, str]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that only look hang up before the file has been sent."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        content = self._answer()
        self.wfile.write(content[: len(content) // 2] if self.server.truncate else content)

    def _answer(self) -> bytes:
        server = self.server
        server.asked.append((self.command, self.path))
        content = server.files.get(self.path)
        status = server.status or (200 if content is not None else 404)
        if server.no_head and self.command == "HEAD":
            status = 403
        if status != 200 or content is None:
            self.send_error(status)
            return b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if server.tell == "ETag":
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:12]}"')
        elif server.tell == "Last-Modified":
            self.send_header("Last-Modified", server.modified)
        self.end_headers()
        return content

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """Run a server in a thread until the block ends."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
