"""The text of chapter 14 and the n-grams that its network is measured against."""

from __future__ import annotations

import numpy as np

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
