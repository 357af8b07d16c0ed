"""Where the worker listens."""

import asyncio
import errno
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import unittest

from llmm_worker import web


class BoundTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = os.path.realpath(folder.name)
        before = os.umask(0)
        self.addCleanup(os.umask, before)

    def listener(self, path):
        s = web.bound(path)
        self.addCleanup(s.close)
        s.listen()
        return s

    def connect(self, path):
        """By its name in its folder: the path may be too long."""
        here = os.getcwd()
        s = socket.socket(socket.AF_UNIX)
        self.addCleanup(s.close)
        os.chdir(os.path.dirname(path))
        try:
            s.connect(os.path.basename(path))
        finally:
            os.chdir(here)

    def test_only_its_user_can_connect(self):
        here = os.getcwd()
        long = os.path.join(self.folder, *["a long folder"] * 10)
        os.makedirs(long)
        edge = os.path.join(self.folder, "x" * (web.MAX_SOCKET_PATH - len(self.folder) - 1))
        for path in (os.path.join(self.folder, "short.sock"), os.path.join(long, "é.sock"), edge, edge + "y"):
            self.listener(path)
            self.assertEqual(stat.filemode(os.lstat(path).st_mode), "srw-------")
            self.connect(path)
            self.assertEqual(os.getcwd(), here)
            self.assertEqual(os.umask(0), 0)

    def test_what_is_there_stays(self):
        path = os.path.join(self.folder, "x.sock")
        self.listener(path)
        file = os.path.join(self.folder, "file")
        with open(file, "w") as f:
            f.write("mine")
        link = os.path.join(self.folder, "link")
        os.symlink(os.path.join(self.folder, "elsewhere"), link)
        for taken in (path, file, link):
            with self.assertRaises(OSError) as e:
                asyncio.run(web.Server("k", None).listen(taken))
            self.assertEqual(e.exception.errno, errno.EADDRINUSE)
        self.connect(path)
        self.assertEqual(sorted(os.listdir(self.folder)), ["file", "link", "x.sock"])
        self.assertEqual(os.umask(0), 0)

    def test_a_path_that_cannot_be_is_told(self):
        path = os.path.join(self.folder, "x.sock")
        self.listener(path)
        for at, hint in ((path, "Load again"), ("/proc/x.sock", "data folder"), (os.path.join(self.folder, "none", "x"), "data folder")):
            env = {**os.environ, "LLMM_WORKER": json.dumps({"socket": at, "format": "onnx", "name": "m"}), "LLMM_WORKER_KEY": "k"}
            got = subprocess.run([sys.executable, "-m", "llmm_worker"], env=env, stderr=subprocess.PIPE, text=True, timeout=60)
            self.assertEqual(got.returncode, 1)
            failure = json.loads(got.stderr.splitlines()[-1].split("llmm-worker: ", 1)[1])["failure"]
            self.assertEqual(failure["kind"], "port")
            self.assertIn(at, failure["message"])
            self.assertIn(hint, failure["hint"])
