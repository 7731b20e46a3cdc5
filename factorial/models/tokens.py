"""An upper estimate of the tokens in a text, without a tokenizer.

Tokenizers differ, and exact ones have to be downloaded. This estimate is high: for prose and code it is 1.3 to 2 times
what OpenAI's `o200k_base` and `cl100k_base` count, and it is not below either of them for text that is commonly sent:
base64, hexadecimal ids, digits, JSON, German, Russian, Arabic, Chinese. `tests/unit/test_models_tokens.py` has a table
of texts with their real counts. The estimate may be too low for random characters of one script, and for the tokenizers
of other providers: leave room for them.
"""

import re
from typing import Any

from factorial._core.json import dump_anything

__all__ = ["IMAGE_TOKENS", "count_tokens"]

IMAGE_TOKENS = 4_000
"""The tokens that an image in a message counts as. Providers charge by its size; ordinary images take less."""

_WORD = re.compile(rb"[A-Z]?[a-z]{1,255}")
_CAPITALS = re.compile(rb"[A-Z]{1,255}(?![a-z])")
_CLUSTER = re.compile(rb"[bcdfghjklmnpqrstvwxz]{3}")
_HUMP = re.compile(rb"[a-z](?=[A-Z])")
_SPACES = re.compile(rb" {2,64}| (?=[0-9])")
"""Runs of spaces, and a space before a digit. Any other single space is part of the token that follows it."""

_MOST_REMEMBERED = 50_000
_remembered: dict[tuple[int, int], int] = {}


def count_tokens(value: Any) -> int:
    """An upper estimate of the tokens in a message, in a list of tools, or in a part of these.

    The counts of texts are cached by hash and length, so counting a conversation again costs little more than its new
    messages.
    """
    if isinstance(value, str):
        known = _remembered.get(key := (hash(value), len(value)))
        if known is None:
            if len(_remembered) >= _MOST_REMEMBERED:
                _remembered.clear()
            known = _remembered[key] = _estimate(value)
        return known
    if isinstance(value, dict):
        if value.get("type") in ("image_url", "input_image"):
            return IMAGE_TOKENS
        return sum(count_tokens(key) + 2 + count_tokens(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(count_tokens, value))
    if value is None or isinstance(value, bool | int | float):
        return len(repr(value))
    return _estimate(dump_anything(value).decode())


def _estimate(text: str) -> int:
    """An upper estimate of the tokens in `text`. It takes about 0.1 s for a megabyte."""
    data = text.encode(errors="replace")
    tenths = sum(map(_TENTHS_OF_WORD.__getitem__, map(len, _WORD.findall(data))))
    tenths += sum(map(_TENTHS_OF_CAPITALS.__getitem__, map(len, _CAPITALS.findall(data))))
    # Three consonants in a row, or a capital in the middle, are rare in words. They are frequent in random letters,
    # which take more tokens.
    tenths += 24 * len(_CLUSTER.findall(data))
    tenths += 5 * len(_HUMP.findall(data))
    tenths += 10 * len(_SPACES.findall(data))
    classes = data.translate(_CLASS_OF_BYTE, _COUNTED_ABOVE)
    tenths += sum(cost * classes.count(number) for number, cost in enumerate(_COSTS))
    return -(-tenths // 10)


def _tenths_of_word(length: int) -> int:
    """Tenths of a token for a word. Common words are one token; long or unusual ones are several."""
    for longest, tenths in ((4, 10), (6, 14), (8, 22), (12, 28), (20, 32)):
        if length <= longest:
            return tenths + 4 * max(0, length - 12)
    return 5 * length + 10


def _tenths_of_byte(byte: int) -> int:
    """Tenths of a token for a character that begins with `byte` in UTF-8. 0 if the patterns above count it."""
    if byte < 0x80:
        return 0 if chr(byte).isalpha() or byte == 0x20 else 10  # digits, punctuation, tabs and line ends: one each
    for last, tenths in _TENTHS_OF_SCRIPTS:
        if byte <= last:
            return tenths
    return 0


_TENTHS_OF_SCRIPTS = (
    (0xBF, 0),  # not a first byte
    (0xCD, 20),  # Latin with accents
    (0xCF, 13),  # Greek
    (0xD3, 10),  # Cyrillic
    (0xD6, 22),  # Armenian
    (0xD7, 13),  # Hebrew
    (0xDB, 10),  # Arabic
    (0xDF, 20),
    (0xE0, 20),  # the scripts of India, Thai
    (0xE1, 32),  # Georgian, Ethiopic, Khmer
    (0xE2, 20),  # quotation marks, dashes, arrows, mathematics
    (0xE3, 15),  # Kana
    (0xED, 20),  # Chinese, Korean
    (0xEF, 30),
    (0xF4, 35),  # emoji
)
_TENTHS_OF_WORD = [_tenths_of_word(length) for length in range(257)]
_TENTHS_OF_CAPITALS = [4 + 6 * length for length in range(256)]
_COSTS = sorted({_tenths_of_byte(byte) for byte in range(256)} - {0})
_COUNTED_ABOVE = bytes(byte for byte in range(256) if not _tenths_of_byte(byte))
_CLASS_OF_BYTE = bytes(_COSTS.index(_tenths_of_byte(byte)) if _tenths_of_byte(byte) else 0xFF for byte in range(256))
