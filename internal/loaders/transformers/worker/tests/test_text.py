"""Text grows piece by piece into what decoding all tokens at once gives."""

import random
import unittest

from llmm_worker.text import Detokenizer, Stops


class Bytes:
    """A tokenizer of one byte a token."""

    def decode(self, ids, skip_special_tokens=True, clean_up_tokenization_spaces=False):
        return bytes(ids).decode(errors="replace")


class TestDetokenizer(unittest.TestCase):
    def test_many_byte_characters_come_whole(self):
        text = "aé漢字👩‍👩‍👧 ok"
        d = Detokenizer(Bytes())
        pieces = [d.add(b) for b in text.encode()]
        self.assertEqual("".join(pieces) + d.end(), text)
        self.assertNotIn("\ufffd", "".join(pieces))

    def test_a_broken_end_is_shown(self):
        d = Detokenizer(Bytes())
        self.assertEqual([d.add(b) for b in b"a\xe6\xbc"], ["a", "", ""])
        self.assertEqual(d.end(), "\ufffd")


class TestStops(unittest.TestCase):
    def run_pieces(self, stops, pieces):
        s = Stops(stops)
        out = ""
        for p in pieces:
            out += s.add(p)
            if s.found is not None:
                return out, s.found
        return out + s.end(), None

    def test_across_pieces(self):
        self.assertEqual(self.run_pieces(["END"], ["abcE", "N", "Dxyz"]), ("abc", "END"))
        self.assertEqual(self.run_pieces(["END"], ["abcE", "N", "x"]), ("abcENx", None))

    def test_a_prefix_is_held_back(self):
        self.assertEqual(Stops(["END"]).add("abcEN"), "abc")

    def test_any_cut_of_any_text(self):
        chance = random.Random(1)
        for _ in range(2000):
            text = "".join(chance.choice("ab") for _ in range(chance.randrange(1, 14)))
            stops = ["".join(chance.choice("ab") for _ in range(chance.randrange(1, 4))) for _ in range(chance.randrange(1, 3))]
            pieces, rest = [], text
            while rest:
                n = chance.randrange(1, 4)
                pieces.append(rest[:n])
                rest = rest[n:]
            # A stop is found at the piece that completes it; what ends first wins.
            ends = sorted((text.find(s) + len(s), text.find(s)) for s in stops if s in text)
            got, found = self.run_pieces(stops, pieces)
            if not ends:
                self.assertEqual((got, found), (text, None))
            else:
                self.assertIsNotNone(found)
                self.assertTrue(text.startswith(got + found), (text, stops, pieces, got, found))


if __name__ == "__main__":
    unittest.main()
