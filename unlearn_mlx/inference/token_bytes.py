"""The bytes of single tokens. Decoded one by one they lose blanks, and parts of a character are no text."""

import re
from typing import Any


class TokenBytes:
    """What each token of a tokenizer stands for."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        state = decoder.__getstate__() if decoder is not None else b""
        self._of_character = _byte_of_character() if b'"ByteLevel"' in state else {}

    def __call__(self, token: int) -> bytes:
        """The bytes of a token; none where it is beyond the tokenizer's vocabulary."""
        if token in self._added:
            return str(self._added[token]).encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._of_character:
            return bytes(self._of_character.get(character, ord("?")) for character in piece)
        if found := re.fullmatch("<0x([0-9A-F]{2})>", piece):
            return bytes([int(found[1], 16)])
        return str(piece).replace("▁", " ").encode(errors="replace")


def _byte_of_character() -> dict[str, int]:
    """How byte-level vocabularies spell bytes (Radford et al. 2019): most stand for themselves."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {
        **{chr(byte): byte for byte in printing},
        **{chr(256 + number): byte for number, byte in enumerate(others)},
    }
