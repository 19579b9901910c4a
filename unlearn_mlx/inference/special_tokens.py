"""Chat templates write special tokens; messages must not.

A template puts each message's words between special tokens and the whole is encoded at once. Words that
spell such a token, "<|eot_id|>" say, would end the message and let it speak as another role. Llama 3's
own format encodes words and special tokens apart; so does this, for every template.
"""

import re
from typing import Any

from tokenizers import AddedToken

# Unicode promises that this is no character: it stands in no text, only in the spelling kept from working.
GUARD = "\ufdd0"


class SpecialTokens:
    """A tokenizer's special tokens, told apart from words that only look like them."""

    def __init__(self, tokenizer: Any, sample: str) -> None:
        """``sample`` is a conversation as the template writes it.

        Tokens of it that the tokenizer knows without calling them special, as some fine-tunes know
        <|im_end|>, become special: else anybody could write them, and answers would show them.
        """
        self.tokenizer = tokenizer
        forgotten = [
            AddedToken(token.content, special=True, normalized=False)
            for token in tokenizer.added_tokens_decoder.values()
            # Runs of blanks and line ends are added tokens of some too, and remain text.
            if not token.special and token.content[:1] in ("<", "[") and token.content in sample
        ]
        if forgotten:
            tokenizer.backend_tokenizer.add_special_tokens(forgotten)
        self.ids = {
            token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        # One mark where the tokenizer puts it in front of a text (Llama 3); some know one and leave it out.
        self.beginning = [token for token in tokenizer.encode("")[:1] if token == tokenizer.bos_token_id]
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def guarded(self, words: str) -> str:
        """``words`` with a mark in whatever spells a special token."""
        if not self.ids:
            return words
        return self.pattern.sub(lambda found: found[0][0] + GUARD + found[0][1:], words)

    def end_of_message(self, behind: str) -> int | None:
        """The token that ends an answer, by what the template writes behind one; else the tokenizer's own."""
        known = {*self.ids.values(), *self.tokenizer.eos_token_ids}
        found = (int(token) for token in self.encode(behind) if token in known)
        return next(found, self.tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids of what a template wrote around guarded words."""
        if GUARD not in text:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        tokens: list[int] = []
        for number, piece in enumerate(self.pattern.split(text)):
            tokens += [self.ids[piece]] if number % 2 else self.encode_words(piece.replace(GUARD, ""))
        return tokens

    def encode_words(self, words: str) -> list[int]:
        """Token ids of words as they stand: nothing in them is special."""
        return list(self.tokenizer.encode(words, add_special_tokens=False, split_special_tokens=True))
