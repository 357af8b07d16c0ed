"""HTTP/1.1 on asyncio: enough for a proxy on the same machine, and quick.

Each connection is a task. The answer is written by the model's thread, see answering; everything else by the loop. A
client that hangs up cancels its rows.
"""

import asyncio
import hmac
import json
import logging
import os
import socket
import time

from . import dialect, encode
from .answering import Gathered, Streamed, Wire
from .dialect import Answer, Refused
from .rows import OutOfMemory, Row

log = logging.getLogger("llmm.web")

MAX_HEAD = 64 << 10
MAX_BODY = 64 << 20
MAX_SOCKET_PATH = 103  # bytes that the kernel takes: sun_path has 104 on macOS and 108 on Linux, with a zero

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
           413: "Content Too Large", 431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
           503: "Service Unavailable"}


# Seconds, if not set by hang_after.
HANG_AFTER = 120


class HungUp(Exception):
    """The client is gone: there is nobody to answer."""


def soon(loop, f, *args):
    """Has the loop call f. From any thread."""
    try:
        loop.call_soon_threadsafe(f, *args)
    except RuntimeError:  # the loop has ended: so has the process, nearly
        pass


def bound(path):
    """A socket at path that nobody but this user can connect to. Before there are other threads: the mask and the folder are the
    process's."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask, here = os.umask(0o177), -1
    try:
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            sock.bind(path)
        else:  # by its name in its folder
            here = os.open(".", os.O_RDONLY)
            os.chdir(os.path.dirname(path))
            sock.bind(os.path.basename(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
        if here >= 0:
            os.fchdir(here)
            os.close(here)
    return sock


class Connection(asyncio.StreamReaderProtocol):
    """One connection. gone is set when the client hangs up, also while nobody reads, and on_gone is called then."""

    def __init__(self, server):
        self._loop = asyncio.get_running_loop()
        self.gone, self.on_gone = False, None
        super().__init__(asyncio.StreamReader(limit=MAX_HEAD, loop=self._loop), lambda r, w: server.serve(self, r, w), loop=self._loop)

    def eof_received(self):
        self._went()
        return super().eof_received()

    def connection_lost(self, exc):
        self._went()
        super().connection_lost(exc)

    def _went(self):
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()


class Server:
    """The worker's HTTP server."""

    def __init__(self, key, control):
        self._key = ("Bearer " + key).encode()
        self._control = control
        self._loaded = self._engine = self._watching = None
        self._open = set()
        self._stalled = False
        self.served = 0
        self.error = None  # why the model's thread ended

    def ready(self, loaded, engine, hang_after=HANG_AFTER, on_end=None):
        """From now on requests are answered; until then they get 503. on_end is called, by the loop, should the model's thread
        end: error then says why."""
        loop = asyncio.get_running_loop()

        def ended(error):
            self.error = error
            if on_end is not None:
                on_end()

        engine.on_end = lambda error: soon(loop, ended, error)
        self._loaded, self._engine = loaded, engine
        self._watching = loop.create_task(self._watch(hang_after))

    async def _watch(self, hang_after):
        """Notes when work is under way and nothing has moved for hang_after seconds: /health says 503 then, and the manager ends
        the process if it stays so."""
        while True:
            await asyncio.sleep(min(1.0, hang_after / 10))
            stalled = self._engine.look() >= hang_after
            if stalled and not self._stalled:
                log.error("Nothing has moved for %.0f s although there is work. The model's thread is here:\n%s", hang_after, self._engine.stack())
            elif self._stalled and not stalled:
                log.info("it moves again")
            self._stalled = stalled

    def _health(self):
        if self._engine is None:
            return "loading"
        if self.error is not None:
            return "ended"
        return "stalled" if self._stalled else "ok"

    def memory(self):
        """Requests that the model was given, without those that were refused, and bytes of GPU memory: now, and at most since the start."""
        return {"served": self.served, **(self._loaded.memory() if self._loaded else {})}

    async def listen(self, path):
        """Opens the socket at path. Raises OSError when there is something already."""
        loop = asyncio.get_running_loop()
        # Not create_unix_server: it would remove the socket of another that lies there.
        self._listener = await loop.create_server(lambda: Connection(self), sock=bound(path), backlog=512)

    async def close(self):
        self._listener.close()
        if self._watching is not None:
            self._watching.cancel()
        for task in list(self._open):
            task.cancel()

    async def serve(self, connection, reader, writer):
        task = asyncio.current_task()
        self._open.add(task)
        try:
            while await self._one(connection, reader, writer):
                pass
        except (HungUp, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception:
            log.exception("a connection failed")
        finally:
            self._open.discard(task)
            writer.close()

    async def _one(self, connection, reader, writer):
        """Answers one request; False when the connection is to be closed."""
        try:
            method, target, headers = await self._head(reader)
        except Refused as e:
            self._send(writer, e.status, e.body(), close=True)
            return False
        keep = headers.get(b"connection", b"").lower() != b"close"
        try:
            path = target.split("?", 1)[0]
            if not hmac.compare_digest(headers.get(b"authorization", b""), self._key):
                # Nothing is read for one who may not ask, so that the connection cannot go on.
                keep = keep and headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
                if path != "/health":
                    raise Refused("The key is wrong; ask through the gateway", status=401, kind="authentication_error")
                body = b""
            else:
                body = await self._body(reader, writer, headers)
            await self._route(connection, writer, method, path, body)
        except Refused as e:
            self._send(writer, e.status, e.body())
            keep = keep and e.status != 413
        except OutOfMemory as e:
            self._send(writer, 503, Refused(f"The device ran out of memory for this request: {str(e).splitlines()[0][:300] if str(e) else ''}. "
                                            "Try again with a shorter prompt or fewer tokens", kind="out_of_memory", code="out_of_memory").body())
        except (HungUp, ConnectionError, asyncio.CancelledError):
            raise
        except Exception as e:
            log.exception("%s %s failed", method, target)
            self._send(writer, 500, Refused(f"The engine failed: {type(e).__name__}: {str(e)[:300]}", kind="server_error").body())
        await writer.drain()
        return keep

    async def _head(self, reader):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise Refused("The request's head is too large", status=431)
        lines = head.split(b"\r\n")
        try:
            method, target, version = lines[0].decode("ascii").split(" ")
        except ValueError:
            raise Refused("This is not HTTP")
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise Refused("Only HTTP/1.1 is understood")
        headers = {}
        for line in lines[1:-2]:
            name, colon, value = line.partition(b":")
            name = name.lower()
            if not colon or not name or name != name.strip():
                raise Refused("A header line is not one")
            if name in headers and name in (b"content-length", b"transfer-encoding", b"authorization"):
                raise Refused("A header is there twice")
            headers[name] = value.strip()
        if version == "HTTP/1.0":
            headers[b"connection"] = b"close"
        return method, target, headers

    async def _body(self, reader, writer, headers):
        if headers.get(b"expect", b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"transfer-encoding" in headers:
            if headers[b"transfer-encoding"].lower() != b"chunked" or b"content-length" in headers:
                raise Refused("This transfer encoding is not understood")
            return await self._chunks(reader)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused("Content-Length is not a number")
        if int(length) > MAX_BODY:
            raise Refused(f"The request is larger than {MAX_BODY >> 20} MiB", status=413)
        return await reader.readexactly(int(length))

    async def _chunks(self, reader):
        out = bytearray()
        while True:
            line = (await reader.readuntil(b"\r\n")).split(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                raise Refused("A chunk's size is not a number")
            if size < 0 or len(out) + size > MAX_BODY:
                raise Refused(f"The request is larger than {MAX_BODY >> 20} MiB", status=413)
            out += await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise Refused("A chunk does not end where it says")
            if size == 0:
                return bytes(out)

    def _send(self, writer, status, body, close=False):
        data = json.dumps(body, ensure_ascii=False).encode()
        head = f"HTTP/1.1 {status} {REASONS.get(status, '')}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(head.encode() + (b"Connection: close\r\n\r\n" if close else b"\r\n") + data)

    async def _route(self, connection, writer, method, path, body):
        if path == "/health":
            status = self._health()
            self._send(writer, 200 if status == "ok" else 503, {"status": status})
            return
        if self._engine is None:
            raise Refused("The model is still being loaded", status=503, kind="unavailable", code="loading")
        loaded = self._loaded
        routes = {"/v1/models": ("GET", self._models), "/stats": ("GET", self._stats)}
        if loaded.kind == "generate":
            routes["/v1/chat/completions"] = ("POST", lambda: self._generate(connection, writer, dialect.chat(self._json(body), loaded)))
            routes["/v1/completions"] = ("POST", lambda: self._generate(connection, writer, dialect.completion(self._json(body), loaded)))
        for api, jobs in (("embeddings", encode.embeddings), ("fill-mask", encode.fill_mask), ("classify", encode.classify)):
            if api in loaded.apis:
                routes["/v1/" + api] = ("POST", lambda jobs=jobs: self._job(connection, writer, jobs(self._json(body), loaded)))
        found = routes.get(path)
        if found is None:
            raise Refused(f"There is no {path} here: this model answers {', '.join(sorted(routes))}", status=404, code="unsupported")
        if found[0] != method:
            raise Refused(f"{path} wants {found[0]}", status=405)
        answer = found[1]()
        if asyncio.iscoroutine(answer):
            self.served += 1
            await answer
        else:
            self._send(writer, 200, answer)

    def _json(self, body):
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as e:
            raise Refused(f"The request is not JSON: {str(e)[:200]}")

    def _models(self):
        return {"object": "list", "data": [{"id": self._loaded.name, "object": "model", "owned_by": "llmm"}]}

    def _stats(self):
        running, waiting = self._engine.load()
        return {"running": running, "waiting": waiting, "served": self.served, **self._loaded.report()}

    async def _job(self, connection, writer, compute):
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def work():
            if connection.gone:
                raise HungUp()
            return compute()

        def settle(got, error):
            if future.done():
                return
            if error is None:
                future.set_result(got)
            else:
                future.set_exception(error)

        self._engine.call(work, lambda got, error: soon(loop, settle, got, error))
        self._send(writer, 200, await future)

    async def _generate(self, connection, writer, request):
        loop = asyncio.get_running_loop()
        finished = loop.create_future()

        def settle(error):
            if finished.done():
                return
            if error is None:
                finished.set_result(None)
            else:
                finished.set_exception(error)

        def finish(error):
            soon(loop, settle, error)

        answering = (Streamed if request.stream else Gathered)(request, Answer(request, self._loaded.name, self._loaded.tokenizer), finish)
        rows = self._rows(request, answering)
        if connection.gone:
            raise HungUp()
        wire = answering.wire = Wire(loop, writer)
        connection.on_gone = lambda: settle(HungUp())
        began = time.monotonic()
        try:
            self._engine.submit(rows)
            await finished
        except HungUp:
            log.info("a client hung up after %.1f s", time.monotonic() - began)
            raise
        finally:
            connection.on_gone = None
            wire.close()
            for row in rows:
                row.cancelled.set()

    def _rows(self, request, answering):
        rows = []
        for prompt in request.prompts:
            room = self._loaded.context_length
            if not self._loaded.encoder_decoder:
                room -= len(prompt)
            if room < 1 or len(prompt) > self._loaded.context_length:
                raise Refused(f"The prompt has {len(prompt)} tokens, and the model has a context of {self._loaded.context_length}",
                              "messages" if request.chat else "prompt", code="context_length_exceeded")
            for _ in range(request.n):
                settings = request.sampling
                if settings.seed is not None and request.n > 1:
                    settings = type(settings)(**{**settings.__dict__, "seed": settings.seed + len(rows)})
                rows.append(Row(prompt, settings, min(request.max_tokens or room, room), request.stops, answering.sink(len(rows)),
                                request.skip_special, request.ignore_eos))
        return rows
