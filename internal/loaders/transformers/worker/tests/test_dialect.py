"""What a request may say to the model's chat template."""

import inspect
import unittest
from types import SimpleNamespace

from llmm_worker import dialect
from llmm_worker.dialect import Refused

TEMPLATE = "{{ messages[0].content }}{% if enable_thinking %} thinks{% endif %}{{ style }}{% for t in xml_tools or [] %} {{ t.name }}{% endfor %}"

# A program of a client's own, which would keep the loop busy for an hour.
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


class Plain:
    """A tokenizer that takes what transformers 4.57 takes, and notes what it is given."""

    chat_template = TEMPLATE

    def apply_chat_template(self, conversation, tools=None, documents=None, chat_template=None, add_generation_prompt=False, continue_final_message=False,
                            tokenize=True, padding=False, truncation=False, max_length=None, return_tensors=None, return_dict=False,
                            return_assistant_tokens_mask=False, tokenizer_kwargs=None, **kwargs):
        self.template, self.kwargs, self.tokenize = chat_template, kwargs, tokenize
        return "a"

    def __call__(self, text, **_):
        return {"input_ids": [0]}

    def __len__(self):
        return 1


class Wrapped(Plain):
    """One of a model's own code, whose parameters do not show, and one of a version to come."""

    def apply_chat_template(self, *args, render_with=None, **kwargs):
        return super().apply_chat_template(*args, **kwargs)


def ask(tokenizer, **body):
    return dialect.chat({"messages": [{"role": "user", "content": "a"}], **body}, SimpleNamespace(tokenizer=tokenizer, defaults={}))


class TemplateTest(unittest.TestCase):
    def refused(self, tokenizer, name, value):
        tokenizer.template = "not asked"
        with self.assertRaises(Refused, msg=name) as caught:
            ask(tokenizer, chat_template_kwargs={"enable_thinking": False, name: value})
        e = caught.exception
        self.assertEqual((e.status, e.param, e.kind), (400, f"chat_template_kwargs.{name}", "invalid_request_error"))
        self.assertIn(name, e.message)
        self.assertEqual(tokenizer.template, "not asked")

    def test_a_client_brings_no_template(self):
        for tokenizer in (Plain(), Wrapped()):
            self.refused(tokenizer, "chat_template", LOOP)
            with self.assertRaises(Refused) as caught:
                ask(tokenizer, chat_template=LOOP)
            self.assertEqual(caught.exception.param, "chat_template")

    def test_the_parameters_are_the_workers_own(self):
        for name, value in (("tokenize", True), ("documents", [{}]), ("padding", "max_length"), ("max_length", 10**9), ("return_tensors", "pt"), ("tools", []),
                            ("tokenizer_kwargs", {}), ("conversation", []), ("self", 1), ("kwargs", {}), ("messages", []), ("conversations", []), ("sanitize_control_tokens", True)):
            for tokenizer in (Plain(), Wrapped()):
                self.refused(tokenizer, name, value)
        self.refused(Wrapped(), "render_with", LOOP)

    def test_what_a_template_reads_is_let_through(self):
        for tokenizer in (Plain(), Wrapped()):
            told = {"enable_thinking": True, "thinking_budget": 100, "style": "short", "xml_tools": [{"name": "f"}], "none": None}
            ask(tokenizer, chat_template_kwargs=told, reasoning_effort="low")
            self.assertEqual(tokenizer.kwargs, {"reasoning_effort": "low", **told})
            self.assertEqual((tokenizer.template, tokenizer.tokenize), (None, False))

    def test_very_deep_values_are_refused(self):
        deep = []
        for _ in range(100_000):
            deep = [deep]
        tokenizer = real()
        tokenizer.chat_template = "{{ messages | tojson }}{{ x | tojson }}"
        for body in ({"chat_template_kwargs": {"x": deep}}, {"messages": [{"role": "user", "content": "a", "x": deep}]}):
            with self.assertRaises(Refused) as caught:
                ask(tokenizer, **body)
            self.assertEqual(caught.exception.status, 400)


class RealTemplateTest(unittest.TestCase):
    """With the tokenizer of the transformers that is installed."""

    def test_every_parameter_is_refused(self):
        tokenizer = real()
        names = [n for n, p in inspect.signature(tokenizer.apply_chat_template).parameters.items() if p.kind is not p.VAR_KEYWORD]
        self.assertIn("chat_template", names)
        self.assertGreater(len(names), 12)
        for name in names:
            with self.assertRaises(Refused, msg=name) as caught:
                ask(tokenizer, chat_template_kwargs={name: LOOP})
            self.assertEqual(caught.exception.param, f"chat_template_kwargs.{name}")

    def test_the_models_template_reads_the_rest(self):
        tokenizer = real()
        for told, want in (({}, ["a"]), ({"enable_thinking": True}, ["a", "thinks"]), ({"xml_tools": [{"name": "f"}]}, ["a", "f"])):
            self.assertEqual(tokenizer.convert_ids_to_tokens(ask(tokenizer, chat_template_kwargs=told).prompts[0]), want)


def real():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({"?": 0, "a": 1, "thinks": 2, "f": 3}, unk_token="?"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="?", chat_template=TEMPLATE)


if __name__ == "__main__":
    unittest.main()
