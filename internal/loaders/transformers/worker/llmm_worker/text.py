"""Tokens to text, piece by piece, and where a text has to stop."""


class Detokenizer:
    """Turns a growing list of tokens into text that only ever grows.

    Some tokens are parts of a character, and some tokenizers put a space depending on what came before. So each step
    decodes a short window with and without the new token and gives the difference, once it ends in whole characters.
    """

    def __init__(self, tokenizer, skip_special=True):
        # The Rust tokenizer below the Python one decodes ten times faster, and this runs twice a token.
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        self._tokenizer, self._skip = tokenizer, skip_special
        self._ids = []
        self._from = 0  # the window begins here
        self._given = 0  # tokens before this are in the text already

    def _decode(self, ids):
        if self._fast is not None:
            return self._fast.decode(ids, skip_special_tokens=self._skip)
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False)

    def add(self, token):
        """Returns the text that the token adds; "" while a character is incomplete."""
        self._ids.append(token)
        before = self._decode(self._ids[self._from:self._given])
        now = self._decode(self._ids[self._from:])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._from, self._given = self._given, len(self._ids)
        return now[len(before):]

    def end(self):
        """Returns what was held back, broken characters and all."""
        before = self._decode(self._ids[self._from:self._given])
        now = self._decode(self._ids[self._from:])
        self._from = self._given = len(self._ids)
        return now[len(before):]


class Stops:
    """Holds back text that may be the beginning of a stop string, and finds the first of them."""

    def __init__(self, stops):
        self._stops = [s for s in stops if s]
        self._held = ""
        self.found = None

    def add(self, text):
        """Returns what may be shown. Nothing more may be shown once found is set."""
        if not self._stops:
            return text
        self._held += text
        at = min(((self._held.find(s), s) for s in self._stops if s in self._held), default=None)
        if at is not None:
            shown, self._held, self.found = self._held[:at[0]], "", at[1]
            return shown
        keep = 0
        for s in self._stops:
            for n in range(min(len(s) - 1, len(self._held)), keep, -1):
                if self._held.endswith(s[:n]):
                    keep = n
                    break
        shown = self._held[:len(self._held) - keep]
        self._held = self._held[len(self._held) - keep:]
        return shown

    def end(self):
        """Returns what was held back: the text is over, so it is no stop string."""
        shown, self._held = self._held, ""
        return shown
