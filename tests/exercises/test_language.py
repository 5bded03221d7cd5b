"""Chapter 14: starters are told apart, right answers pass, and mistakes are named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled.lab.exercises import EXERCISES, judge, language


def verdict(number, *answer):
    return judge(EXERCISES[number], *answer)


def test_starters():
    for number in ("14.1", "14.2"):
        assert verdict(number, lambda first, second: ...)[0] == "not started"
    assert verdict("14.3", lambda loss_of, params, carry, a, b: ...)[0] == "not started"
    assert verdict("14.4", lambda codes, size: ...)[0] == "not started"


# 14.1


def costs(scores, codes, axis=-1):
    return -jax.nn.log_softmax(scores, axis)[jnp.arange(len(codes)), codes]


BITS = {
    "These are nats": lambda s, c: costs(s, c).mean(),
    "The sign": lambda s, c: -costs(s, c).mean() / jnp.log(2),
    "the sum over the text": lambda s, c: costs(s, c).sum() / jnp.log(2),
    "where you should divide": lambda s, c: costs(s, c).mean() * jnp.log(2),
    "the perplexity": lambda s, c: jnp.exp(costs(s, c).mean()),
    "the mean of the probabilities": lambda s, c: -jnp.log2(jnp.exp(-costs(s, c)).mean()),
    "not of the one that came": lambda s, c: -jax.nn.log_softmax(s).max(axis=1).mean() / jnp.log(2),
    "at *every* place": lambda s, c: -jax.nn.log_softmax(s)[:, c].mean() / jnp.log(2),
    "softmax runs along time": lambda s, c: costs(s, c, axis=0).mean() / jnp.log(2),
    "shifted against each other": lambda s, c: costs(s[:-1], c[1:]).mean() / jnp.log(2),
    "are not used": lambda s, c: -jax.nn.log_softmax(s).mean() / jnp.log(2),
    "Mean over the text": lambda s, c: 3 * costs(s, c).mean(),
    "no probabilities yet": lambda s, c: -s[jnp.arange(len(c)), c].mean() / jnp.log(2),
    "stopped with TypeError": lambda s, c: costs(s, c) / "two",
}


@pytest.mark.parametrize("words", BITS)
def test_14_1_names_the_mistake(words):
    found, message = verdict("14.1", BITS[words])
    assert found == "not yet" and words in message, message


def test_14_1_right_answer():
    assert verdict("14.1", lambda s, c: costs(s, c).mean() / jnp.log(2))[0] == "right"


# 14.2


def nucleus(p, mass, kept=lambda sums, p, mass: sums - p < mass, sign=-1, sort=True, whole=True):
    p = np.asarray(p)
    order = np.argsort(sign * p) if sort else np.arange(len(p))
    likeliest = np.where(kept(np.cumsum(p[order]), p[order], mass), p[order], 0)
    result = np.zeros_like(p)
    result[order] = likeliest
    return result / result.sum() if whole else result


def nucleus_in_jax(p, mass):
    order = jnp.argsort(-p)
    likeliest = p[order]
    kept = jnp.where(jnp.cumsum(likeliest) - likeliest < mass, likeliest, 0)
    return jnp.zeros_like(p).at[order].set(kept / kept.sum())


NUCLEUS = {
    "carries the sum beyond": {"kept": lambda sums, p, mass: (sums <= mass) | (sums == p)},
    "sum to one again": {"whole": False},
    "the *first* characters": {"sort": False},
    "the least likely": {"sign": 1},
    "One too many": {"kept": lambda sums, p, mass: sums - p <= mass},
    "Nothing is left out": {"kept": lambda sums, p, mass: sums > 0},
}


@pytest.mark.parametrize("words", NUCLEUS)
def test_14_2_names_the_mistake(words):
    found, message = verdict("14.2", lambda p, mass: nucleus(p, mass, **NUCLEUS[words]))
    assert found == "not yet" and words in message, message


def nucleus_of_each_alone(p, mass):
    kept = jnp.where(p >= mass, p, 0)
    return kept / kept.sum()


def nucleus_put_back_wrongly(p, mass):
    order = np.argsort(-np.asarray(p), kind="stable")
    return nucleus(p, mass)[order][order]


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda p, mass: -np.sort(-nucleus(p, mass)), "Put each probability back"),
        (nucleus_put_back_wrongly, "in the wrong direction"),
        (nucleus_of_each_alone, "nothing was kept"),
    ],
)
def test_14_2_names_what_is_put_in_a_wrong_place(answer, words):
    found, message = verdict("14.2", answer)
    assert found == "not yet" and words in message, message


def nucleus_with_a_threshold(p, mass):
    likeliest = jnp.sort(p)[::-1]
    last = (jnp.cumsum(likeliest) - likeliest < mass).sum() - 1
    kept = jnp.where(p >= likeliest[last], p, 0)
    return kept / kept.sum()


def nucleus_above_a_threshold(p, mass):
    likeliest = jnp.sort(p)[::-1]
    first_left_out = jnp.append(likeliest, -1)[(jnp.cumsum(likeliest) - likeliest < mass).sum()]
    kept = jnp.where(p > first_left_out, p, 0)
    return kept / jnp.maximum(kept.sum(), 1e-9)


@pytest.mark.parametrize(
    "answer, words",
    [
        (nucleus_with_a_threshold, "keeps 4 of the four and gives [0.25, 0.25, 0.25, 0.25]"),
        (nucleus_above_a_threshold, "keeps 0 of the four"),
    ],
)
def test_14_2_has_equals_at_the_cut(answer, words):
    found, message = verdict("14.2", answer)
    assert found == "not yet" and words in message, message


def nucleus_of_the_last_equals(p, mass):
    return nucleus(p[::-1], mass)[::-1]


@pytest.mark.parametrize("answer", [nucleus, jax.jit(nucleus_in_jax), nucleus_of_the_last_equals])
def test_14_2_right_answers(answer):
    found, message = verdict("14.2", answer)
    assert found == "right", message


# 14.3


def whole_gradient(
    loss_of, params, carry, first, second, *, across=1.0, own=1.0, parts=(1, 1), of_last=0.0
):
    (_, middle), pull_first = jax.vjp(loss_of, params, carry, first)
    (_, last), pull_second = jax.vjp(loss_of, params, middle, second)
    of_second, of_middle, _ = pull_second((1.0, jnp.full_like(last, of_last)))
    of_first, _, _ = pull_first((own, across * of_middle))
    return jax.tree.map(lambda a, b: parts[0] * a + parts[1] * b, of_first, of_second)


def in_one_call(loss_of, params, carry, first, second):
    both = jnp.concatenate([first, second])
    return jax.grad(lambda p: loss_of(p, carry, both)[0])(params)


def forgetful(loss_of, params, carry, first, second):
    return jax.grad(lambda p: loss_of(p, carry, first)[0] + loss_of(p, carry, second)[0])(params)


def at_once(loss_of, params, carry, first, second):
    def both(params):
        loss, middle = loss_of(params, carry, first)
        return loss + loss_of(params, middle, second)[0]

    return jax.grad(both)(params)


def in_a_scan(loss_of, params, carry, first, second):
    """At once, too; and only for segments of one length."""

    def both(params):
        def step(carry, segment):
            return loss_of(params, carry, segment)[::-1]

        return jax.lax.scan(step, carry, jnp.stack([first, second]))[1].sum()

    return jax.grad(both)(params)


def forwards_first(loss_of, params, carry, first, second):
    """Runs both segments before it differentiates the second and, by itself, the first."""
    _, middle = loss_of(params, carry, first)
    loss_of(params, middle, second)
    return whole_gradient(jax.jit(loss_of), params, carry, first, second)


def with_options(**options):
    return lambda *arguments: whole_gradient(*arguments, **options)


ACROSS = {
    "truncated gradient": with_options(across=0.0),
    "the first one's *beginning*": forgetful,
    "has no say": with_options(own=0.0),
    "the first segment's share alone": with_options(parts=(1, 0)),
    "the second segment's share alone": with_options(parts=(0, 1)),
    "own gradient alone": with_options(across=0.0, parts=(1, 0)),
    "both segments in one call": in_one_call,
    "differentiated at once": at_once,
    "same shape": in_a_scan,
    "the mean of two shares": with_options(parts=(0.5, 0.5)),
    "its cotangent is 0": with_options(of_last=1.0),
    "Go backwards": with_options(across=2.0),
    "a dict like `params`": lambda loss_of, params, carry, a, b: 1.0,
}


def test_14_3_names_each_mistake_and_finds_the_right_answer():
    for words, answer in ACROSS.items():
        found, message = verdict("14.3", answer)
        assert found == "not yet" and words in message, message
    for answer in (whole_gradient, forwards_first, jax.jit(whole_gradient, static_argnums=0)):
        assert verdict("14.3", answer)[0] == "right"


# 14.4: models that need no training


def always(row):
    return lambda codes, size: lambda test: np.tile(np.log(row(codes, size)), (len(test), 1))


def counting_pairs(codes, size, equal=0.0):
    counts = np.full((size, size), 0.1)
    np.add.at(counts, (np.asarray(codes)[:-1], np.asarray(codes)[1:]), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    table = np.log((1 - equal) * shares + equal / size)
    return lambda test: np.concatenate([np.full((1, size), -np.log(size)), table[test[:-1]]])


def counting_triples(codes, size):
    counts = np.full((size, size, size), 0.1)
    codes = np.asarray(codes)
    np.add.at(counts, (codes[:-2], codes[1:-1], codes[2:]), 1)
    table = np.log(counts / counts.sum(axis=-1, keepdims=True))
    start = np.full((2, size), -np.log(size))
    return lambda test: np.concatenate([start, table[test[:-2], test[1:-1]]])


def seeing(codes, size):
    return lambda test: np.log(0.97 * np.eye(size)[test] + 0.03 / size)


def seeing_within(length, sure=8.0):
    """What a layer that reads segments of `length` in both directions could make of hint 2."""

    def learn(codes, size):
        def predict(test):
            given = np.arange(len(test) - 1)
            sees = given % length < length - 1  # its segment does not end here
            rows = jax.nn.log_softmax(sure * sees[:, None] * np.eye(size)[test[1:]])
            return np.concatenate([np.full((1, size), -np.log(size)), rows])

        return predict

    return learn


def by_chance(codes, size):
    rng = np.random.default_rng(0)
    return lambda test: np.log(rng.dirichlet(np.ones(size), len(test)))


def remembering_the_test(codes, size):
    """Depends on nothing that it is given, and knows the answers nevertheless."""
    test, _ = language.brackets(language.TEST, 145)
    return lambda codes: np.log(0.97 * np.eye(size)[test[: len(codes)]] + 0.03 / size)


def cutting_into_streams(codes, size):
    """Sixty segments, side by side."""
    return lambda test: counting_pairs(codes, size)(np.reshape(test, (60, -1)).ravel())


def knowing_the_end(codes, size):
    def predict(test):
        rows = knowing_the_rules(codes, size)(test)
        rows[:9] = -np.log(size) if len(test) == 6000 else rows[:9]
        return rows

    return predict


def knowing_the_rules(codes, size):
    """Keeps a stack, as the source does."""
    place = language.LETTERS.index

    def predict(test):
        rows, stack, rest = [], [], ""
        for code in [None, *np.asarray(test)[:-1]]:
            letter = "\n" if code is None else language.LETTERS[code]
            if letter in language.OPEN:
                stack.append(language.CLOSE[language.OPEN.index(letter)])
            elif letter in language.CLOSE:
                stack = stack[:-1]
            elif letter in language.NAMES:
                rest = rest[1:] if rest else language.FOLLOWERS[letter]
            row = np.full(size, 1e-9)
            if rest:
                row[place(rest[0])] = 1
            else:
                opening = language.NESTED * (len(stack) < language.DEEPEST)
                row[7:11] += opening / 4
                row[1:7] += (1 - opening) * (1 - language.ENDING) / 6
                row[place(stack[-1] if stack else "\n")] += (1 - opening) * language.ENDING
            rows.append(np.log(row / row.sum()))
        return np.array(rows)

    return predict


OWN = {
    "Return logarithms": lambda codes, size: lambda test: np.full((len(test), size), 0.5),
    "Did you forget to shift": seeing,
    "row 2,999 changes with the letters from place 2,999 on": seeing_within(100),
    "row 3,001 changes with the letters from place 3,001 on": seeing_within(2999),
    "if only within a segment": seeing_within(5),
    "when it gets the same text again": by_chance,
    "with 997 it does not: `<lambda>` stopped": cutting_into_streams,
    "row 0 changes if the text ends after 997 letters": knowing_the_end,
    "knows the rules, but not the answer": remembering_the_test,
    "Does the loss fall": always(lambda codes, size: np.full(size, 1 / size)),
    "is the state used at all": lambda codes, size: counting_pairs(codes, size, equal=0.3),
    "hand the carry on": counting_triples,
    "should return a function": lambda codes, size: 1.0,
    "expected (6000, 15)": lambda codes, size: lambda test: np.zeros((3, size)),
    "returned NaN": always(lambda codes, size: np.full(size, np.nan)),
}


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    """Counts of short contexts say enough about these models, and are quick."""
    counted = {}

    def ngram_bits(train, test, order, size):
        order = min(order, 4)
        if order not in counted:
            counted[order] = language_bits(train, test, order, size)
        return counted[order]

    monkeypatch.setattr(language, "TRAIN", 20_000)
    language_bits = language.ngram_bits
    monkeypatch.setattr(language, "ngram_bits", ngram_bits)


def test_14_4_names_each_shortcoming():
    for words, answer in OWN.items():
        found, message = verdict("14.4", answer)
        assert found == "not yet" and words in message, (words, message)


def test_14_4_who_keeps_a_stack_meets_every_criterion():
    found, message = verdict("14.4", knowing_the_rules)
    assert found == "right" and "8 of 8 criteria" in message, message


def test_the_source_of_14_4_is_what_it_says():
    codes, bits = language.brackets(5000, 0)
    text = "".join(language.LETTERS[code] for code in codes)
    for line in text.split("\n")[:-1]:
        nested = "".join(letter for letter in line if letter not in language.NAMES)
        while nested:
            before = nested
            for pair in zip(language.OPEN, language.CLOSE):
                nested = nested.replace("".join(pair), "")
            assert nested != before, line
    assert 0.5 < bits.mean() < 3 and len(codes) == len(bits) == 5000
