"""The thread that owns the model, and the queue before it. See generate for a queue that makes batches."""

import collections
import threading


class Jobs:
    """Runs functions one after the other, so that the model never sees two threads."""

    def __init__(self):
        self._waiting = collections.deque()
        self._wake = threading.Condition()
        self._closed = False
        self._running = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, items):
        """Queues jobs, or what else a subclass runs. Each is answered, whatever happens."""
        with self._wake:
            self._waiting.extend(items)
            self._wake.notify()

    def call(self, job):
        """Queues a function without arguments that uses the model; it must catch what it raises."""
        self.submit([job])

    def load(self):
        """How many rows and jobs run and wait."""
        with self._wake:
            return self._running, len(self._waiting)

    def close(self):
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _work(self):
        while True:
            with self._wake:
                self._running = 0
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                batch = self._next()
                self._running = len(batch)
            self._run(batch)

    def _next(self):
        """Takes what runs next out of the queue; the lock is held."""
        return [self._waiting.popleft()]

    def _run(self, batch):
        batch[0]()
