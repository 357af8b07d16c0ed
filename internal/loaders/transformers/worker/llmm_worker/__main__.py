"""The worker; see worker.go for how it is started. Settings come as JSON in LLMM_WORKER, the key in LLMM_WORKER_KEY.

Settings: socket (its path), path (the folder), file (within it, of an ONNX model), tokenizer_path, format, name (the model_id), device
("cpu" or "cuda"), quantization_bits, context_length, trust_remote_code, params (the checked custom_loader_params). The log goes to stderr.
"""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import sys
import threading
import traceback

from . import early, troubles
from .control import Control, Failure

log = logging.getLogger("llmm.worker")


def main():
    # Imports make a million objects and next to no garbage: to look for some takes a seventh of a start. loading and onnx turn
    # it on again before they read weights.
    gc.disable()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # It warns of a cast in every layer of every token.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    settings = json.loads(os.environ.pop("LLMM_WORKER"))
    key = os.environ.pop("LLMM_WORKER_KEY")
    control = Control()
    code = asyncio.run(serve(settings, key, control))
    sys.stderr.flush()
    # Threads of torch and CUDA may take long to end on their own account, and nothing is left to do.
    os._exit(code)


async def serve(settings, key, control):
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for s in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(s, stop.set)
    control.stage("engine", "Importing onnxruntime" if settings.get("format") == "onnx" else "Importing torch and transformers")
    try:
        server, started = await start(settings, key, control, loop, stop)
        if not started:
            return 0
    except Failure as e:
        if e.kind == "crash":
            traceback.print_exc()
        return failed(control, e)
    except Exception as e:
        traceback.print_exc()
        return failed(control, Failure("crash", f"The worker failed: {type(e).__name__}: {str(e).splitlines()[0][:300] if str(e) else ''}", "The log has the whole traceback."))
    await stop.wait()
    if server.error is not None:
        await asyncio.sleep(0.2)  # what its clients are told goes out first
        return failed(control, broken(server.error))
    log.info("ended with %s", json.dumps(server.memory()))
    await server.close()
    return 0


async def start(settings, key, control, loop, stop):
    """Opens the socket, imports, loads. Slow steps run in a thread, so that SIGTERM is obeyed at once."""
    onnx = settings.get("format") == "onnx"
    if not onnx:
        early.check(settings)
    with needed(onnx):
        from . import web  # without torch: that the socket's path is taken is learnt before seconds have passed
    server = web.Server(key, control)
    try:
        await server.listen(settings["socket"])
    except OSError as e:
        hint = "Load again: another is chosen." if e.errno == errno.EADDRINUSE else "Put the server's data folder on a disk of this machine: not every file system has sockets."
        raise Failure("port", f"The socket {settings['socket']} cannot be used: {e}", hint)

    def imported():
        with needed(onnx):
            if onnx:  # without torch, which takes seconds and half a gigabyte
                from . import onnx as loading
            else:
                from . import loading
        return loading

    loading = await in_thread(imported, loop, stop)
    if loading is None:
        return server, False
    loaded = await in_thread(lambda: loading.load(settings, control), loop, stop)
    if loaded is None:
        return server, False
    loaded.name = settings["name"]
    params = settings.get("params", {})
    server.ready(loaded, loaded.engine(params), int(params.get("hang_after") or web.HANG_AFTER), stop.set)
    log.info("loaded %s", json.dumps(loaded.report()))
    control.ready()
    return server, True


def broken(error):
    """The Failure of a model whose thread has ended."""
    said = f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
    if troubles.fatal(error):
        return Failure("crash", f"CUDA failed, after which nothing runs in the same process, so the worker ended: {said}",
                       "The model is loaded again. If it comes back, look at the driver (nvidia-smi, dmesg) and at the requests of that moment.")
    return Failure("crash", f"The thread that runs the model ended: {said}", "The log has the whole traceback.")


@contextlib.contextmanager
def needed(onnx):
    """Says what the environment lacks, should an import fail."""
    try:
        yield
    except ImportError as e:
        traceback.print_exc()
        raise Failure("engine_missing", f"The Python environment of the engine lacks something: {e}",
                      "Run `llmm engine install transformers`, or name an interpreter that has " +
                      ("onnxruntime and tokenizers." if onnx else "torch, transformers and safetensors."))


async def in_thread(work, loop, stop):
    """Returns what work returns; None when the process was asked to end first: the thread is then left behind."""
    future = loop.create_future()

    def run():
        try:
            got, error = work(), None
        except BaseException as e:
            got, error = None, e
        loop.call_soon_threadsafe(settle, got, error)

    def settle(got, error):
        if future.done():
            return
        if error is None:
            future.set_result(got)
        else:
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    ended = asyncio.ensure_future(stop.wait())
    await asyncio.wait((future, ended), return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if not future.done():
        return None
    return future.result()


def failed(control, failure):
    print(f"FAILED ({failure.kind}): {failure.message}", file=sys.stderr, flush=True)
    control.failure(failure)
    return 1


if __name__ == "__main__":
    main()
