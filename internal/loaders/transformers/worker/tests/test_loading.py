"""What a load costs beyond the model."""

import subprocess
import sys
import unittest

# In a process of its own, since other tests import what they like.
CHOOSE = """
import sys
from transformers import LlamaConfig
from llmm_worker.loading import choose_class
chosen = choose_class(LlamaConfig(architectures=["LlamaForCausalLM"]), {})
print(chosen[0].__name__, chosen[1], len({m.split(".")[2] for m in sys.modules if m.startswith("transformers.models.")}))
"""


class ChooseTest(unittest.TestCase):
    def test_only_the_models_own_package_is_imported(self):
        """Some ways to ask transformers whether it knows a config import all that it has, which takes a second or two."""
        out = subprocess.run([sys.executable, "-c", CHOOSE], stdout=subprocess.PIPE, check=True).stdout.decode().split()
        self.assertEqual(out[:2], ["AutoModelForCausalLM", "generate"])
        self.assertLess(int(out[2]), 20)


if __name__ == "__main__":
    unittest.main()
