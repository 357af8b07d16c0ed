"""What the manager is told: JSON objects, one a line of the log, behind a mark that keeps them from people's eyes.

Kinds of line:
    {"stage": "weights", "done": 3, "total": 290, "unit": "tensors", "message": "..."}
    {"ready": true}      the socket answers; GET /stats tells what was loaded
    {"failure": {"kind": ..., "message": ..., "hint": ...}}    the last line; the process ends with code 1
"""

import gc
import json
import os
import threading
import time

MARK = "llmm-worker: "


class Failure(Exception):
    """Why a load failed, in the manager's words. kind is one of its FailureKinds."""

    def __init__(self, kind, message, hint=""):
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint


class Control:
    """Writes the lines, each with one write, so that what others print cannot come between."""

    # Progress is told at most this often, in seconds; the last of a stage always is.
    INTERVAL = 0.05

    def __init__(self, fd=2):
        self._fd = fd
        self._lock = threading.Lock()
        self._stage = None
        self._told = 0.0

    def send(self, line):
        data = (MARK + json.dumps(line) + "\n").encode()
        with self._lock:
            try:
                os.write(self._fd, data)
            except OSError:  # a full disk: the load goes on without being watched
                pass

    def stage(self, name, message="", done=0, total=0, unit=""):
        now = time.monotonic()
        if name == self._stage and done and done != total and now - self._told < self.INTERVAL:
            return
        self._stage, self._told = name, now
        line = {"stage": name}
        if message:
            line["message"] = message
        if total:
            line.update(done=done, total=total, unit=unit)
        self.send(line)

    def ready(self):
        self.send({"ready": True})

    def failure(self, failure):
        # Short enough for one line of the manager's log, which cuts longer ones.
        self.send({"failure": {"kind": failure.kind, "message": failure.message[:700], "hint": failure.hint[:300]}})


def imported():
    """Has Python look for garbage again, and never in what has been imported: that stays, and a look at all of it would take
    tenths of a second between two tokens."""
    gc.freeze()
    gc.enable()
