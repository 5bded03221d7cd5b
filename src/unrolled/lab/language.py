"""Text for chapter 14: Python's own manual as numbers, and what an n-gram model makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from unrolled._checks import describe, shape_of, whole_number

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""The 96 characters that a text is made of here: the line's end and printable ASCII."""

PLAIN = str.maketrans("–—‘’“”…", "--''\"\".")
"""Typographic characters of the manual, and what stands for them in ASCII."""


def python_manual() -> str:
    """Return the manual behind Python's `help("topics")`, each of its paragraphs once.

    Every Python has it, as `pydoc_data.topics`, and no two versions have quite the same. Its topics
    repeat each other: without a care for that, a fifth of a held-out text has been seen in
    training. Here a paragraph that has come before, up to its spaces, is left out.

    Returns:
      Some 370,000 characters of `CHARACTERS`, the topics in alphabetical order.

    Example:
      >>> text = python_manual()
      >>> text.startswith('The "assert" statement'), set(text) <= set(CHARACTERS)
      (True, True)
    """
    from pydoc_data.topics import topics  # half a megabyte

    seen, kept = set(), []
    for name in sorted(topics):
        for paragraph in topics[name].strip("\n").split("\n\n"):
            words = tuple(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph.strip("\n"))
    text = "\n\n".join(kept).translate(PLAIN)
    return "".join(character for character in text if character in CHARACTERS)


def encode(text: str) -> np.ndarray:
    """Return each character's place in `CHARACTERS`, shape (len(text),).

    Raises:
      TypeError: something that is not a text.
      ValueError: a character that `CHARACTERS` lacks.

    Example:
      >>> encode("\\n !").tolist()
      [0, 1, 2]
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {describe(text)}; expected a str.")
    strange = sorted(set(text) - set(CHARACTERS))
    if strange:
        raise ValueError(
            f"text holds {', '.join(map(ascii, strange[:3]))}; expected the line's end and "
            "printable ASCII alone, the 96 characters of CHARACTERS."
        )
    codes = np.frombuffer(text.encode("ascii"), np.uint8)
    return np.where(codes == 10, 0, codes - 31).astype(np.int32)


def decode(codes: np.ndarray) -> str:
    """Return the text of such numbers; the inverse of `encode`.

    Raises:
      TypeError, ValueError: something other than whole numbers from 0 to 95.

    Example:
      >>> decode(encode("for x in y:"))
      'for x in y:'
    """
    codes = _codes("codes", codes, len(CHARACTERS))
    return "".join(CHARACTERS[code] for code in codes)


def ngram_bits(train: np.ndarray, test: np.ndarray, order: int, size: int = 96) -> np.ndarray:
    """Count how often what follows what, and return how many bits each character then costs.

    The probability of a character after its last `order` - 1 is interpolated with that after fewer,
    down to equal shares for all `size` (Kneser-Ney with one discount for each length: a shorter
    context counts in how many longer ones a character has followed it, not how often).

    Args:
      train, test: whole numbers below `size`; test comes right after train.
      order: how many characters are looked at together; `size` to this power is below 2^63.
      size: of the vocabulary.

    Returns:
      An array like test of the bits -log2 p.

    Raises:
      TypeError: codes or an order that are not whole numbers.
      ValueError: codes that are not below `size`, an order that is too large, or a training text
        that is shorter than it.

    Example:
      >>> bits = ngram_bits(encode("abcabcabcabc"), encode("abcabc"), order=3)
      >>> bool((bits < 1).all())
      True
    """
    size, order = whole_number("size", size, 2), whole_number("order", order, 1)
    most = next(power for power in range(63) if size ** (power + 1) >= 2**63)
    if order > most:
        raise ValueError(
            f"order is {order}; expected at most {most}: {size}**order has to fit in 64 bits."
        )
    train, test = _codes("train", train, size), _codes("test", test, size)
    if len(train) < order:
        raise ValueError(f"train has length {len(train)}; expected at least order, {order}.")
    everything = np.concatenate([train, test])
    first = len(train)  # of the test text

    def windows(codes: np.ndarray, length: int) -> np.ndarray:
        """For each place the number that stands for the last `length` characters up to there."""
        number = np.zeros(len(codes), np.int64)
        for back in range(length):
            number[length - 1 :] += size**back * codes[length - 1 - back : len(codes) - back]
        return number

    probability = np.full(len(test), 1 / size)
    for length in range(1, order + 1):
        if length == order:
            grams, counts = np.unique(windows(train, length)[length - 1 :], return_counts=True)
        else:  # in how many different contexts, one character longer
            longer = np.unique(windows(train, length + 1)[length:])
            grams, counts = np.unique(longer % size**length, return_counts=True)
        contexts, starts = np.unique(grams // size, return_index=True)
        totals, kinds = np.add.reduceat(counts, starts), np.diff(np.append(starts, len(grams)))
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = (once + 1) / (once + 2 * twice + 2)  # never 0

        asked = windows(everything, length)[first:]
        place = np.searchsorted(grams, asked).clip(max=len(grams) - 1)
        count = np.where(grams[place] == asked, np.maximum(counts[place] - discount, 0), 0)
        place = np.searchsorted(contexts, asked // size).clip(max=len(contexts) - 1)
        known = contexts[place] == asked // size
        interpolated = (count + discount * kinds[place] * probability) / totals[place]
        probability = np.where(known, interpolated, probability)
    return -np.log2(probability)


def _codes(name: str, codes: Any, size: int) -> np.ndarray:
    """Return codes of characters as (length,) int64, or say what is wrong with them."""
    array = np.asarray(codes, None if 0 not in shape_of(name, codes) else int)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} is {describe(codes)}; expected whole numbers in one row.")
    if len(array) and not 0 <= array.min() <= array.max() < size:
        raise ValueError(
            f"{name} holds numbers from {array.min()} to {array.max()}; expected them from 0 to "
            f"{size - 1}, as many as there are characters."
        )
    return array.astype(np.int64)
