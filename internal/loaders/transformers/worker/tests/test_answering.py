"""What a client gets of a stream that another thread writes."""

import asyncio
import json
import socket
import threading
import unittest
from types import SimpleNamespace

from llmm_worker.answering import Gathered, Streamed, Wire
from llmm_worker.dialect import Answer
from llmm_worker.rows import OutOfMemory, Piece, Sampling


def request(**more):
    return SimpleNamespace(**{**dict(prompts=[[1, 2]], n=1, stream=True, include_usage=True, chat=False, echo=False, id="x", created=1,
                                     sampling=Sampling()), **more})


class Kept:
    """A wire that keeps what was written."""

    def __init__(self):
        self.writes = []

    def write(self, data):
        self.writes.append(data)


class Clock:
    """Milliseconds that pass when the test says so."""

    now = 1000

    def __call__(self):
        return self.now / 1000


def events(data):
    """The events of a chunked body."""
    body, rest = b"", data.split(b"\r\n\r\n", 1)[1]
    while True:
        size, rest = rest.split(b"\r\n", 1)
        if int(size, 16) == 0:
            return [line[6:] for line in body.split(b"\n\n") if line]
        body, rest = body + rest[:int(size, 16)], rest[int(size, 16) + 2:]


class StreamedTest(unittest.TestCase):
    def stream(self, **more):
        self.ended, self.clock = [], Clock()
        s = Streamed(request(**more), Answer(request(**more), "m", None), self.ended.append, clock=self.clock)
        s.wire = Kept()
        return s

    def steps(self, s, pieces, apart, index=0):
        """What is written with each piece, which come so many milliseconds apart."""
        out = []
        for text in pieces:
            self.clock.now += apart
            before = len(s.wire.writes)
            s.sink(index)(Piece(text, [1] if text else [], [None] if text else []))
            out.append(b"".join(s.wire.writes[before:]))
        return out

    def test_every_piece_is_written_once_and_in_order(self):
        for apart in (0, 3, 9):
            s = self.stream()
            take = s.sink(0)
            for i in range(9):
                self.clock.now += apart
                take(Piece(f"t{i}", [i], [None]))
            take(Piece("end", [9], [None], "length"))
            got = events(b"".join(s.wire.writes))
            self.assertEqual(got[-1], b"[DONE]")
            told = [json.loads(e) for e in got[:-1]]
            self.assertEqual("".join(e["choices"][0]["text"] for e in told[:-1]), "t0t1t2t3t4t5t6t7t8end")
            self.assertEqual(told[-1]["usage"], {"prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12})
            self.assertEqual(self.ended, [None])
            # The first at once, the others at once or together.
            self.assertIn(b"t0", s.wire.writes[0])
            self.assertEqual(len(s.wire.writes), {0: 2, 3: 6, 9: 10}[apart])

    def test_a_piece_is_held_only_if_the_next_step_comes_in_time(self):
        s = self.stream()
        self.assertEqual([w.count(b"data") for w in self.steps(s, "abcdefg", 3)], [1, 0, 2, 0, 2, 0, 2])
        # A step that takes long writes what was held, and so do those after it, until they are quick again.
        self.assertEqual([w.count(b"data") for w in self.steps(s, "hij", 20)], [1, 1, 1])
        self.assertEqual([w.count(b"data") for w in self.steps(s, "klm", 1)], [0, 0, 0])

    def test_a_step_without_text_writes_what_is_held(self):
        s = self.stream()
        self.assertEqual([w.count(b"data") for w in self.steps(s, "ab", 3)], [1, 0])
        self.assertEqual([w.count(b"data") for w in self.steps(s, ["", "", ""], 3)], [1, 0, 0])

    def test_the_rows_of_a_slow_step_do_not_wait_for_each_other(self):
        s = self.stream(n=3)
        for _ in range(4):
            self.clock.now += 20
            for row in range(3):
                self.assertEqual([w.count(b"data") for w in self.steps(s, "x", 0.1, row)], [1])

    def test_a_row_that_ends_leaves_nothing_held(self):
        s = self.stream(n=2)
        for row in (0, 1, 0, 1, 0):
            self.steps(s, "x", 0.1, row)
        s.sink(1)(Piece("y", [1], [None], "stop"))
        self.assertEqual(b"".join(s.wire.writes).count(b"data"), 6)
        self.assertEqual(self.ended, [])

    def test_texts_are_quoted_as_json_quotes_them(self):
        text = '\x00\x1f"\\/\u2028\x7fé漢😀\n'
        for chat in (False, True):
            s = self.stream(chat=chat)
            s.sink(0)(Piece(text, [1], [None], "stop"))
            told = [json.loads(e) for e in events(b"".join(s.wire.writes))[:-1]]
            choice = told[1 if chat else 0]["choices"][0]
            self.assertEqual((choice["delta"]["content"] if chat else choice["text"], choice["finish_reason"]), (text, "stop"))

    def test_an_error_before_anything_was_written_is_the_loops_to_tell(self):
        s = self.stream()
        s.sink(0)(Piece("", [], [], None, OutOfMemory("full")))
        self.assertEqual(s.wire.writes, [])
        self.assertIsInstance(self.ended[0], OutOfMemory)

    def test_an_error_in_the_middle_comes_after_what_was_held(self):
        s = self.stream(n=2)
        s.sink(0)(Piece("a", [1], [None]))
        s.sink(1)(Piece("b", [1], [None]))
        s.sink(0)(Piece("", [], [], None, OutOfMemory("full")))
        s.sink(1)(Piece("late", [1], [None], "stop"))
        got = events(b"".join(s.wire.writes))
        self.assertEqual([json.loads(e)["choices"][0]["text"] for e in got[:2]], ["a", "b"])
        self.assertEqual(json.loads(got[2])["error"]["type"], "out_of_memory")
        self.assertEqual((got[3:], self.ended), ([b"[DONE]"], [None]))

    def test_a_whole_answer_waits_for_all_choices(self):
        ended, r = [], request(stream=False, n=2)
        g = Gathered(r, Answer(r, "m", None), ended.append)
        g.wire = Kept()
        g.sink(1)(Piece("two", [1], [None], "stop"))
        self.assertEqual((g.wire.writes, ended), ([], []))
        g.sink(0)(Piece("one", [1], [None], "length"))
        body = json.loads(g.wire.writes[0].split(b"\r\n\r\n", 1)[1])
        self.assertEqual([c["text"] for c in body["choices"]], ["one", "two"])
        self.assertEqual(ended, [None])


class WireTest(unittest.TestCase):
    def test_a_slow_client_gets_all_of_it(self):
        """More than the socket takes: the rest goes through the loop, in order, while the writing thread never waits."""
        pieces = [b"%06d" % i * 1000 for i in range(2000)]

        async def main():
            ours, theirs = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=ours)
            wire = Wire(asyncio.get_running_loop(), writer)
            writing = threading.Thread(target=lambda: [wire.write(p) for p in pieces])
            writing.start()
            writing.join()  # nobody has read yet
            got = bytearray()

            def read():
                while len(got) < sum(map(len, pieces)):
                    got.extend(theirs.recv(1 << 20))

            await asyncio.get_running_loop().run_in_executor(None, read)
            wire.close()
            wire.write(b"too late")
            writer.close()
            await writer.wait_closed()
            self.assertEqual(theirs.recv(10), b"")
            theirs.close()
            return bytes(got)

        self.assertEqual(asyncio.run(main()), b"".join(pieces))

    def test_a_client_that_has_gone_is_no_error(self):
        async def main():
            ours, theirs = socket.socketpair()
            _, writer = await asyncio.open_connection(sock=ours)
            wire = Wire(asyncio.get_running_loop(), writer)
            theirs.close()
            for _ in range(3):
                wire.write(b"x")
            wire.close()
            writer.close()

        asyncio.run(main())


if __name__ == "__main__":
    unittest.main()
