"""From the pieces of a text to the client, on the thread that makes them.

Handing each piece to the loop would cost two changes of threads, and of the interpreter's lock, which the model wants back
at once: ten times what it costs to write the piece to the socket. So the model's thread writes, as long as the client
keeps up, and the loop learns of the end.
"""

import json
import os
import threading
import time

from . import dialect
from .dialect import Refused
from .rows import OutOfMemory


class Wire:
    """Writes to a client, in order, from the model's thread; through the loop once the client does not keep up."""

    def __init__(self, loop, writer):
        self._loop, self._writer = loop, writer
        self._lock = threading.Lock()  # against close, which the loop calls
        self._open, self._fd = True, -1
        transport = writer.transport
        if transport.get_write_buffer_size() == 0 and not transport.is_closing():
            # A number of our own: that of the transport may be another client's as soon as the loop has closed it.
            self._fd = os.dup(transport.get_extra_info("socket").fileno())

    def write(self, data):
        """Never waits. What a client that has gone does not get is dropped; the loop learns of it by itself."""
        with self._lock:
            if not self._open:
                return
            if self._fd >= 0:
                try:
                    data = data[os.write(self._fd, data):]
                except BlockingIOError:
                    pass
                except OSError:
                    return
                if not data:
                    return
                self._forsake()
            try:
                self._loop.call_soon_threadsafe(self._by_loop, data)
            except RuntimeError:  # the loop has ended: so has the process, nearly
                pass

    def close(self):
        """Nothing is written any more. The connection stays open."""
        with self._lock:
            self._open = False
            self._forsake()

    def _forsake(self):
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _by_loop(self, data):
        if not self._writer.is_closing():
            self._writer.write(data)


class Answering:
    """Takes the pieces of a request's rows, all on the model's thread. finish is called once: without an error when the
    whole answer has been written, with one when nothing has."""

    def __init__(self, request, answer, finish):
        self._request, self._answer, self._finish = request, answer, finish
        self._choices = self._left = len(request.prompts) * request.n
        self._generated = 0
        self._over = False
        self.wire = None  # set before the rows are submitted

    def sink(self, index):
        """The sink of a row."""
        return lambda piece: self._take(index, piece)

    def _take(self, index, piece):
        if self._over:
            return
        if piece.error is not None:
            self._over = True
            self._fail(piece.error)
            return
        self._generated += len(piece.tokens)
        usage = None
        if piece.finish is not None:
            self._left -= 1
            if self._left == 0:
                self._over = True
                usage = dialect.usage(sum(len(p) for p in self._request.prompts), self._generated)
        self._add(index, piece, usage)
        if self._over:
            self._finish(None)


class Gathered(Answering):
    """A whole answer."""

    def __init__(self, *args):
        super().__init__(*args)
        self._texts = [["", [], [], None] for _ in range(self._choices)]

    def _add(self, index, piece, usage):
        text = self._texts[index]
        text[0] += piece.text
        text[1] += piece.tokens
        text[2] += piece.logprobs
        text[3] = piece.finish
        if usage is None:
            return
        if self._request.echo:
            for i, text in enumerate(self._texts):
                text[0] = self._answer.prompt(i // self._request.n) + text[0]
        data = json.dumps(self._answer.whole([tuple(t) for t in self._texts], usage), ensure_ascii=False).encode()
        self.wire.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    def _fail(self, error):
        self._finish(error)


class Streamed(Answering):
    """An event for each piece. The status is sent with the first, so that what fails before has a status of its own.

    To write, and to wake the client, costs more than all else that a piece costs. So a piece is held if the next step is
    to be expected within HOLD of the last write; whatever that step brings, it is what writes the piece at the latest. No
    timer watches over that: to wake the loop would take the interpreter's lock from the model again and again.
    """

    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n"
    HOLD = 0.008  # seconds; nobody sees less

    def __init__(self, *args, clock=time.monotonic):
        super().__init__(*args)
        self._clock = clock
        self._begun = False
        self._held, self._written = [], 0.0
        self._row, self._stepped, self._step = self._choices, 0.0, self.HOLD  # a step takes the rows in their order

    def _add(self, index, piece, usage):
        if piece.text or piece.finish is not None:
            if not self._begun:
                self._held += [e for e in map(self._answer.first, range(self._choices)) if e is not None]
            self._held.append(self._answer.event(index, piece))
            if usage is not None:
                if self._request.include_usage:
                    self._held.append(self._answer.usage_event(usage))
                self._end()
                return
        now = self._clock()
        if index <= self._row:  # the next step has begun; the one after it is taken to be as long as the last one was
            if self._stepped:
                self._step = now - self._stepped
            self._stepped = now
        self._row = index
        # After a row's end its batch may be over, and the next step be long in coming.
        if self._held and (now + self._step > self._written + self.HOLD or piece.finish is not None):
            self._write(now)

    def _write(self, now=0.0, end=b""):
        head = b"" if self._begun else self.HEAD
        self._begun, self._written = True, now
        held, self._held = self._held, []
        self.wire.write(head + chunk(held) + end)

    def _end(self):
        self._held.append("[DONE]")
        self._write(end=b"0\r\n\r\n")

    def _fail(self, error):
        if self._begun:
            kind = "out_of_memory" if isinstance(error, OutOfMemory) else "server_error"
            told = Refused(f"The engine failed in the middle of the answer: {str(error)[:300]}", kind=kind).body()
            self._held.append(json.dumps(told))
            self._end()
            error = None
        self._finish(error)


def chunk(events):
    """Events as one chunk of the body."""
    data = "".join(f"data: {e}\n\n" for e in events).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)
