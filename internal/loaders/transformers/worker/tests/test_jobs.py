"""What the model's thread does when the model fails, hangs or fills the memory."""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import weakref
from types import SimpleNamespace

from llmm_worker import __main__ as program
from llmm_worker import web
from llmm_worker.jobs import Ended, Jobs
from llmm_worker.rows import OutOfMemory, Row, Sampling


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which is in another place in each version."""


class JobsTest(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def ask(self, engine, compute):
        told, done = [], threading.Event()
        engine.call(compute, lambda got, error: (told.append((got, error)), done.set()))
        self.assertTrue(done.wait(10))
        return told[0]

    def test_what_breaks_one_job_leaves_the_others_alone(self):
        engine = Jobs()
        self.addCleanup(engine.close)

        def fail():
            raise ValueError("no")

        self.assertIsInstance(self.ask(engine, fail)[1], ValueError)
        self.assertEqual(self.ask(engine, lambda: 7), (7, None))

    def test_memory_that_is_too_little_is_called_that(self):
        engine = Jobs()
        self.addCleanup(engine.close)
        for e in (MemoryError(), OutOfMemoryError("tried to allocate 2 GiB"),
                  RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
                  RuntimeError("CUDA error: out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")):
            def fail(e=e):
                raise e
            self.assertIsInstance(self.ask(engine, fail)[1], OutOfMemory, e)
        self.assertEqual(self.ask(engine, lambda: 7), (7, None))

    def test_a_cuda_error_ends_the_thread_and_all_that_waits_is_told(self):
        engine, ended, go, told = Jobs(), threading.Event(), threading.Event(), []
        why = []
        engine.on_end = lambda e: (why.append(e), ended.set())

        def fail():
            go.wait()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        engine.call(fail, lambda got, error: told.append(error))
        engine.call(lambda: 7, lambda got, error: told.append(error))
        go.set()
        self.assertTrue(ended.wait(10))
        self.assertIn("illegal memory access", str(why[0]))
        self.assertEqual([type(e) for e in told], [RuntimeError, Ended])
        self.assertIsInstance(self.ask(engine, lambda: 7)[1], Ended)
        f = program.broken(why[0])
        self.assertEqual(f.kind, "crash")
        self.assertIn("illegal memory access", f.message)

    def test_a_fault_of_the_queue_itself_ends_the_thread_too(self):
        class Faulty(Jobs):
            def _next(self):
                raise KeyError("a fault of ours")

        engine, ended = Faulty(), threading.Event()
        engine.on_end = lambda e: ended.set()
        self.assertIsInstance(self.ask(engine, lambda: 7)[1], Ended)
        self.assertTrue(ended.wait(10))

    def test_a_step_that_takes_long_moves_and_one_that_hangs_does_not(self):
        engine, started, half, go = Jobs(), threading.Event(), threading.Event(), threading.Event()
        self.addCleanup(engine.close)
        self.addCleanup(go.set)
        self.addCleanup(half.set)
        self.assertEqual(engine.look(), 0.0)

        def long():
            started.set()
            half.wait()
            go.wait()

        engine.call(long, lambda got, error: None)
        started.wait(10)
        while "half.wait" not in engine.stack():  # until it stands there
            pass
        self.assertLess(engine.look(), 999)
        engine._moved -= 1000  # as if that time had passed
        self.assertGreater(engine.look(), 999)
        self.assertIn("in long", engine.stack())
        half.set()
        while engine.look() > 999:  # ends once the thread stands elsewhere
            pass


class BatchTest(unittest.TestCase):
    """Batches of a model that only pretends."""

    def engine(self, generate):
        from llmm_worker.generate import Engine
        model = SimpleNamespace(generate=generate)
        return Engine(SimpleNamespace(recurrent=False, model=model, tokenizer=None, input_device="cpu", pad_id=0, encoder_decoder=False,
                                      eos_ids=set(), decoder_start_id=None), 8, 65536)

    def run_rows(self, engine, count):
        done, ended = threading.Semaphore(0), []
        rows = [Row([1, 2], Sampling(temperature=0.0), 4, [], lambda p, i=i: (ended.append((i, p.error)), done.release())) for i in range(count)]
        engine.submit(rows)
        for _ in rows:
            self.assertTrue(done.acquire(timeout=20))
        return dict(ended)

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_what_a_batch_held_is_gone_when_its_rows_run_alone(self):
        class Held:
            pass

        sizes, held = [], []

        def generate(input_ids, **kwargs):
            sizes.append(len(input_ids))
            if len(input_ids) > 1:
                tensors = Held()
                tensors.itself = tensors  # as graphs of tensors are
                held.append(weakref.ref(tensors))
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            sizes.append([r() for r in held])

        engine = self.engine(generate)
        self.addCleanup(engine.close)
        ended = self.run_rows(engine, 3)
        self.assertEqual(sizes, [3, 1, [None], 1, [None], 1, [None]])
        self.assertTrue(all("before the text was complete" in str(e) for e in ended.values()), ended)  # it pretends, and says nothing

    def test_one_row_that_does_not_fit_is_told_so(self):
        def generate(input_ids, **kwargs):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

        engine = self.engine(generate)
        self.addCleanup(engine.close)
        self.assertIsInstance(self.run_rows(engine, 1)[0], OutOfMemory)

    def test_a_cuda_error_fails_the_batch_and_ends_the_thread(self):
        def generate(input_ids, **kwargs):
            raise RuntimeError("CUDA error: device-side assert triggered")

        engine, ended = self.engine(generate), threading.Event()
        engine.on_end = lambda e: ended.set()
        self.assertIn("device-side", str(self.run_rows(engine, 2)[1]))
        self.assertTrue(ended.wait(10))


# A worker in a process of its own, with a model that does what MODEL says at its first request.
WORKER = """
import sys, threading, types
from llmm_worker import __main__ as program
from llmm_worker.jobs import Jobs

class Loaded:
    kind, apis, name, tokenizer, context_length, config, rows_at_once, tokens_at_once = "embed", ["embeddings"], "m", range(9), 9, None, 8, 8
    def engine(self, params): return Jobs()
    def report(self): return {}
    def memory(self): return {}
    def embed(self, lists):
        if sys.argv[1] == "hang": threading.Event().wait()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

sys.modules["llmm_worker.onnx"] = module = types.ModuleType("llmm_worker.onnx")
module.load = lambda settings, control: Loaded()
import llmm_worker
llmm_worker.onnx = module
program.main()
"""


class WorkerTest(unittest.TestCase):
    def start(self, what):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        at = os.path.join(folder.name, "engine.sock")
        settings = {"socket": at, "format": "onnx", "name": "m", "params": {"hang_after": 1}}
        worker = subprocess.Popen([sys.executable, "-c", WORKER, what], stderr=subprocess.PIPE, text=True,
                                  env={**os.environ, "LLMM_WORKER": json.dumps(settings), "LLMM_WORKER_KEY": "k"})
        self.addCleanup(worker.stderr.close)
        self.addCleanup(worker.wait)
        self.addCleanup(worker.kill)
        limit = threading.Timer(60, worker.kill)  # rather than to wait for ever
        limit.start()
        self.addCleanup(limit.cancel)
        for line in worker.stderr:
            if '"ready"' in line:
                return worker, at
        self.fail("it did not start")

    def send(self, at, head, body=b""):
        s = socket.socket(socket.AF_UNIX)
        self.addCleanup(s.close)
        s.settimeout(20)
        s.connect(at)
        s.sendall(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)
        return s

    def health(self, at):
        s = self.send(at, b"GET /health HTTP/1.1\nConnection: close")
        got = b""
        while data := s.recv(4096):
            got += data
        return got.split(b" ")[1], json.loads(got.split(b"\r\n\r\n")[1])["status"]

    def embed(self, at):
        body = b'{"input": [[1]]}'
        return self.send(at, b"POST /v1/embeddings HTTP/1.1\nAuthorization: Bearer k\nContent-Length: %d" % len(body), body)

    def test_a_model_that_hangs_shows(self):
        worker, at = self.start("hang")
        # Before the key is known nothing of a body is read: the answer comes although none was sent.
        s = self.send(at, b"POST /v1/embeddings HTTP/1.1\nAuthorization: Bearer x\nContent-Length: 60000000")
        self.assertTrue(s.recv(4096).startswith(b"HTTP/1.1 401"))
        self.assertEqual(s.recv(1), b"")
        self.assertEqual(self.health(at), (b"200", "ok"))
        self.embed(at)
        for line in worker.stderr:  # it says where it hangs
            if "in embed" in line:
                break
        while self.health(at) != (b"503", "stalled"):
            self.assertIsNone(worker.poll())

    def test_a_cuda_error_ends_the_worker_with_the_reason(self):
        worker, at = self.start("cuda")
        s = self.embed(at)
        self.assertTrue(s.recv(4096).startswith(b"HTTP/1.1 500"))
        last = worker.stderr.read().splitlines()[-1]
        self.assertEqual(worker.wait(), 1)
        failure = json.loads(last.split("llmm-worker: ", 1)[1])["failure"]
        self.assertEqual(failure["kind"], "crash")
        self.assertIn("illegal memory access", failure["message"])


if __name__ == "__main__":
    unittest.main()
