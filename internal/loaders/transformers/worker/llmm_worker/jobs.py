"""The thread that owns the model, and the queue before it. See generate for a queue that makes batches."""

import collections
import gc
import logging
import sys
import threading
import time
import traceback

from . import troubles
from .rows import OutOfMemory

log = logging.getLogger("llmm.jobs")


class Ended(Exception):
    """The model's thread has ended, and the process is about to."""


class Job:
    """A function without arguments that uses the model. tell(result, error) is called once, from the model's thread."""

    def __init__(self, compute, tell):
        self._compute, self._tell, self._told = compute, tell, False

    def run(self):
        self._answer(self._compute(), None)

    def fail(self, error):
        self._answer(None, error)

    def _answer(self, got, error):
        if not self._told:
            self._told = True
            self._tell(got, error)


class Jobs:
    """Runs jobs one after the other, so that the model never sees two threads.

    What breaks one job is told to whoever asked for it. What breaks the model for all that come after, a CUDA error for
    one, ends the thread: the rest is failed, and on_end is called with the error.
    """

    def __init__(self):
        self._waiting = collections.deque()
        self._wake = threading.Condition()
        self._closed = False
        self._running = 0
        self._error = None  # why the thread ended
        self._moved, self._place = time.monotonic(), None
        self.on_end = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, items):
        """Queues jobs, or what else a subclass runs. Each is answered, whatever happens."""
        with self._wake:
            error = self._error
            if error is None:
                if not self._running and not self._waiting:
                    self._moved = time.monotonic()
                self._waiting.extend(items)
                self._wake.notify()
        if error is not None:
            for item in items:
                item.fail(Ended(str(error)))

    def call(self, compute, tell):
        """Queues a Job."""
        self.submit([Job(compute, tell)])

    def load(self):
        """How many rows and jobs run and wait."""
        with self._wake:
            return self._running, len(self._waiting)

    def close(self):
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def step(self):
        """Work under way has come further."""
        self._moved = time.monotonic()

    def look(self):
        """Seconds since the thread was last seen to move, 0.0 when there is nothing to do. To be asked again and again: a step
        that takes long is told from one that hangs by where in the program the thread is."""
        with self._wake:
            if not self._running and not self._waiting:
                self._place = None
                return 0.0
        place = tuple((id(f), f.f_lasti) for f, _ in self._frames())
        if place != self._place:
            self._place, self._moved = place, time.monotonic()
        return time.monotonic() - self._moved

    def stack(self):
        """Where in the program the thread is, for the log."""
        return "".join(traceback.StackSummary.extract(reversed(list(self._frames()))).format())

    def _frames(self):
        return traceback.walk_stack(sys._current_frames().get(self._thread.ident)) if self._thread.is_alive() else []

    def _work(self):
        batch = []
        try:
            while True:
                with self._wake:
                    self._running = 0
                    while not self._waiting and not self._closed:
                        self._wake.wait()
                    if self._closed:
                        return
                    batch = self._next()
                    self._running = len(batch)
                    self.step()
                self._run(batch)
        except BaseException as e:
            log.exception("the model's thread ended")
            error = e
        with self._wake:
            self._error, left = error, list(self._waiting)
            self._waiting.clear()
        for item in [*batch, *left]:
            item.fail(Ended(str(error)))
        if self.on_end is not None:
            self.on_end(error)

    def _next(self):
        """Takes what runs next out of the queue; the lock is held."""
        return [self._waiting.popleft()]

    def _run(self, batch):
        """Runs it and tells who asked. Raises only what ends the thread."""
        job, full = batch[0], False
        try:
            job.run()
        except BaseException as e:
            full = troubles.out_of_memory(e)
            # One without the traceback, which would keep what filled the memory.
            job.fail(OutOfMemory(str(e)) if full else e)
            if self._broken(e):
                raise
        if full:
            self._forget()

    def _broken(self, e):
        """Whether the model can never work again after e."""
        return troubles.fatal(e)

    def _forget(self):
        """Gives back what failed work has held."""
        gc.collect()
