"""What is read of a folder beside its weights."""

import unittest

from llmm_worker.folder import named_type

KNOWN = ("bert", "roberta", "xlm-roberta", "opt", "t5", "gpt2", "distilbert")


class NamedTypeTest(unittest.TestCase):
    def test_a_model_is_what_its_name_says(self):
        for source, kind in (
            ("prajjwal1/bert-tiny", "bert"),
            ("org/TinyBERT_4L", "bert"),
            ("/opt/models/biobert/", "bert"),
            ("org/xlm-roberta-base", "xlm-roberta"),  # the longest
            ("org/adopted-by-me", ""),  # opt, by chance
            ("bert/other", ""),  # somebody's account
            ("", ""),
        ):
            self.assertEqual(named_type(source, KNOWN), kind, source)


if __name__ == "__main__":
    unittest.main()
