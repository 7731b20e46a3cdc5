"""The upper estimate of tokens against the real counts of OpenAI's tokenizers. Nothing is fake.

`token_counts.json` has texts of many kinds, each with its tokens in `o200k_base` and in `cl100k_base`. It was made once
with the package bpe-openai 0.1.4; the tests need no tokenizer.
"""

import json
import time
from pathlib import Path

import pytest

from factorial.models.tokens import IMAGE_TOKENS, count_tokens

REFERENCE: dict[str, tuple[str, int, int]] = json.loads(
    Path(__file__).with_name("token_counts.json").read_text(encoding="utf-8")
)
PROSE_AND_CODE = (
    "English", "technical English", "Python", "JavaScript", "SQL", "HTML", "JSON", "indented JSON", "a log",
)  # fmt: skip


@pytest.mark.parametrize("name", REFERENCE)
def test_the_estimate_is_not_below_the_real_count(name: str) -> None:
    text, *real = REFERENCE[name]
    assert count_tokens(text) >= max(real)


@pytest.mark.parametrize("name", PROSE_AND_CODE)
def test_the_estimate_of_prose_and_code_is_at_most_twice_the_real_count(name: str) -> None:
    text, *real = REFERENCE[name]
    assert count_tokens(text) <= 2 * min(real)


def test_joined_texts_take_no_more_tokens_than_the_parts() -> None:
    """So the messages of a conversation may be counted one at a time."""
    texts = [text for text, *_ in REFERENCE.values()]
    together = count_tokens(" ".join(texts))
    assert together <= sum(map(count_tokens, texts)) + len(texts)


def test_all_parts_of_a_message_are_counted() -> None:
    text, *real = REFERENCE["English"]
    message = {"role": "assistant", "content": text, "tool_calls": [{"id": "1", "function": {"arguments": text}}]}
    assert 2 * max(real) < count_tokens(message) < 4 * max(real)
    assert count_tokens([message, message]) == 2 * count_tokens(message)
    assert count_tokens(None) >= 1 and count_tokens(12.5) >= 1 and count_tokens(True) >= 1


def test_an_image_does_not_count_as_the_text_of_its_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 100_000}}
    assert count_tokens({"role": "user", "content": [image]}) < IMAGE_TOKENS + 50


def test_a_megabyte_is_counted_quickly_and_once() -> None:
    """It takes about 0.1 s; the bound is for a busy machine. The second time, the counts are cached."""
    conversation = [{"role": "user", "content": REFERENCE["English"][0] * 20 + str(n)} for n in range(100)]
    began = time.process_time()
    first = count_tokens(conversation)
    counted = time.process_time()
    assert count_tokens(conversation) == first
    again = time.process_time()
    assert counted - began < 3.0
    assert again - counted < (counted - began) / 5
