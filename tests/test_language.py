"""The text of chapter 14 and the n-grams that its network is measured against."""

from __future__ import annotations

import numpy as np
import pytest

from unrolled.lab.language import CHARACTERS, decode, encode, ngram_bits, python_manual


def test_every_paragraph_of_the_manual_comes_once_in_96_characters():
    text = python_manual()
    assert len(text) > 300_000 and set(text) <= set(CHARACTERS) and len(CHARACTERS) == 96
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    assert len(set(paragraphs)) > 0.98 * len(paragraphs)  # some differed in a dropped character
    assert decode(encode(text)) == text


def by_hand(train, test, order, size):
    """The same probabilities with dicts and sets, one character after the other."""
    train, tail = list(train), list(train)
    tables = {}
    for length in range(1, order + 1):
        places = range(len(train) - length + 1)
        grams = [tuple(train[i : i + length]) for i in places]
        if length < order:
            longer = {tuple(train[i - 1 : i + length]) for i in places if i}
            grams = [gram[1:] for gram in longer]
        tables[length] = {gram: grams.count(gram) for gram in set(grams)}
    bits = []
    for code in test:
        probability = 1 / size
        for length in range(1, order + 1):
            context = tuple(tail[len(tail) - length + 1 :])
            counts = list(tables[length].values())
            once, twice = counts.count(1), counts.count(2)
            discount = (once + 1) / (once + 2 * twice + 2)
            followers = {g: n for g, n in tables[length].items() if g[:-1] == context}
            if followers:
                kept = max(followers.get((*context, code), 0) - discount, 0)
                given = discount * len(followers) * probability
                probability = (kept + given) / sum(followers.values())
        bits.append(-np.log2(probability))
        tail.append(code)
    return bits


def test_ngrams_are_kneser_and_neys():
    rng = np.random.default_rng(0)
    codes = np.cumsum(rng.integers(0, 3, 300)) % 5
    for order in (1, 2, 3):
        found = ngram_bits(codes[:260], codes[260:], order, size=5)
        np.testing.assert_allclose(found, by_hand(codes[:260], codes[260:], order, 5))


def test_ngrams_give_every_context_a_distribution():
    codes = np.random.default_rng(1).integers(0, 4, 200)
    for context in ([0, 1], [3, 3]):
        train = np.concatenate([codes, context])
        every = [ngram_bits(train, np.array([code]), 3, size=5)[0] for code in range(5)]
        assert abs(np.exp2(-np.array(every)).sum() - 1) < 1e-9


def test_a_text_of_other_characters_is_refused():
    with pytest.raises(
        ValueError, match=r"text holds '\\t', '\\xe9'; expected the line's end and pr"
    ):
        encode("\u00e9 and\t")
    with pytest.raises(TypeError, match="text is b'abc'; expected a str"):
        encode(b"abc")
    assert encode("").shape == (0,) and decode([]) == ""
    assert decode(encode(CHARACTERS)) == CHARACTERS


def test_codes_that_stand_for_nothing_are_refused():
    with pytest.raises(
        ValueError, match="codes holds numbers from -22 to 96; expected them from 0"
    ):
        decode([96, -22])
    for odd in ([1.5], [True], 3, [[1, 2]], "abc", None):
        with pytest.raises(TypeError, match=r"codes is .*; expected whole numbers in one row"):
            decode(odd)
    with pytest.raises(TypeError, match=r"codes is \[1, \[2\]\]; expected an array of numbers"):
        decode([1, [2]])


def test_ngrams_say_what_they_cannot_count():
    codes = encode("to be or not to be")
    for order, most, size in ((10, 9, 96), (10**9, 9, 96), (12, 9, 96), (63, 62, 2), (28, 27, 5)):
        told = rf"order is {order}; expected at most {most}: {size}\*\*order has to fit in 64"
        with pytest.raises(ValueError, match=told):
            ngram_bits(codes % size, codes % size, order, size)
    assert np.isfinite(ngram_bits(codes, codes, 9)).all()
    assert np.isfinite(ngram_bits(codes[:4] % 2, codes % 2, 4, size=2)).all()
    with pytest.raises(ValueError, match="train has length 3; expected at least order, 4"):
        ngram_bits(codes[:3], codes, 4)
    with pytest.raises(ValueError, match=r"train holds numbers from 1 to 85; expected .* to 2"):
        ngram_bits(codes, codes, 2, size=3)
    with pytest.raises(TypeError, match=r"test is .*; expected whole numbers in one row"):
        ngram_bits(codes, codes / 2, 2)
    with pytest.raises(TypeError, match=r"order is 2.0; expected a whole number"):
        ngram_bits(codes, codes, 2.0)
    with pytest.raises(ValueError, match=r"order is 0; expected at least 1"):
        ngram_bits(codes, codes, 0)
    assert ngram_bits(codes, codes[:0], 2).shape == (0,)
    np.testing.assert_array_equal(ngram_bits([1, 0, 1], [0], 2, 2), ngram_bits(*TWO, 2, 2))


TWO = np.array([1, 0, 1], np.uint8), np.array([0], np.int8)
