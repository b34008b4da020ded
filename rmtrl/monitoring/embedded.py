"""Guards that run offline: secrets, personal data, what a reference does not hold, toxic words.

Each is a scorer of severity that names the places; [`~rmtrl.types.Guard`] puts a threshold to it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import regex

from rmtrl.errors import extra
from rmtrl.monitoring.answers import WORDS, Clock, Graded, Pattern, Reading, RuleScorer, readings
from rmtrl.types import shorten

if TYPE_CHECKING:
    from rmtrl.monitoring.classifier import Classifier  # for the annotations alone: no torch here

_NEAR_CHARS = 60  # around a number that a word names
_DOCUMENT_WORDS = 30  # of what was asked, from which on it is taken for a document


class PersonalData(RuleScorer):
    """Numbers of cards, accounts and people that python-stdnum finds valid, e-mail addresses and telephone numbers.

    Numbers that could be anything count only beside a word that names them; role addresses, freephone numbers and what
    stands in examples are mild (0.3) or nothing.

    Example:

    ```python
    >>> [own.reason for own in PersonalData().findings("Her card is 4539 5787 6362 1486, not 4539 5787 6362 1487.")]
    ['payment card']
    ```
    """

    def __init__(self) -> None:
        with extra("monitor", "this guard"):
            importlib.import_module("stdnum")

    def found(self, asked: str, answer: str, reference: str, clock: Clock) -> Iterator[Graded]:
        read, taken = readings(answer), bytearray(len(answer))
        for name, kind in _kinds().items():
            for (start, end), text in kind["pattern"].spans(read, clock).items():
                around = answer[max(0, start - _NEAR_CHARS) : end + _NEAR_CHARS]
                if not any(taken[start:end]) and _is_kind(kind, text, around):
                    taken[start:end] = b"\1" * (end - start)
                    yield Graded(start, end, name, 0.3 if _hits(kind, "mild", text) else kind["severity"])


@cache
def _kinds() -> dict[str, dict[str, Any]]:
    """Returns the kinds of personal data by name, their patterns compiled."""
    kinds = {name: dict(kind) for name, kind in WORDS["personal"].items()}
    for name, kind in kinds.items():
        kind["pattern"] = Pattern(name, kind["pattern"])
        kind |= {key: regex.compile(kind[key], regex.I) for key in ("near", "unless", "mild", "shape") if key in kind}
    return kinds


def _hits(kind: Mapping[str, Any], key: str, text: str) -> bool:
    return key in kind and kind[key].search(text) is not None


def _is_kind(kind: Mapping[str, Any], text: str, around: str) -> bool:
    """Returns whether a text that has the form of a kind is one of it."""
    digits = regex.sub(r"\D", "", text)
    least, most = kind.get("digits", (0, math.inf))
    if not least <= len(digits) <= most or _hits(kind, "unless", text) or digits in WORDS["test_cards"]:
        return False
    if "near" in kind and not _hits(kind, "near", around):
        return False
    if "shape" in kind and not kind["shape"].fullmatch(digits):
        return False
    checked = digits if "shape" in kind else text
    return "check" not in kind or importlib.import_module(f"stdnum.{kind['check']}").is_valid(checked)


class Secrets(RuleScorer):
    """Keys, tokens and passwords by the patterns of detect-secrets, in bounded time, and passwords told in prose.

    What providers give out is 1.0, a password by its name 0.9, a random-looking text between quotes 0.4: a commit's
    hash is one too. Placeholders are nothing.

    Example:

    ```python
    >>> [own.severity for own in Secrets().findings('db_password = "tr0ub4dor&3"')]
    [0.9]
    ```
    """

    def __init__(self) -> None:
        with extra("monitor", "this guard"):
            importlib.import_module("detect_secrets")

    def found(self, asked: str, answer: str, reference: str, clock: Clock) -> Iterator[Graded]:
        own = readings(answer)
        for pattern, group, severity, plugin in _detectors():
            for (start, end), secret in pattern.spans(own, clock, group).items():
                if not _stands_in(secret) and (grade := _grade(severity, secret, plugin, answer[end : end + 200])):
                    yield Graded(start, end, pattern.name, grade)


@cache
def _detectors() -> list[tuple[Pattern, int, float, Any]]:
    """Returns the patterns of detect-secrets and our own, each with the secret's group, its severity, its plugin."""
    kinds = importlib.import_module("detect_secrets.core.plugins.util").get_mapping_from_secret_type_to_class()
    keyword = importlib.import_module("detect_secrets.plugins.keyword").QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP
    found: list[tuple[Pattern, int, float, Any]] = []
    for name, make in kinds.items():
        plugin = make()
        if name == "Secret Keyword":
            found += [(Pattern(name, own.pattern, own.flags), group, 0.9, None) for own, group in keyword.items()]
        elif hasattr(plugin, "entropy_limit"):
            found.append((Pattern(name, plugin.regex.pattern), 2, 0.4, plugin))
        elif name != "Public IP (ipv4)":
            group = 1 if name == "Basic Auth Credentials" else 0
            found += [(Pattern(name, own.pattern, own.flags), group, 1.0, plugin) for own in plugin.denylist]
    return [*found, (Pattern("Told secret", WORDS["told"]), 1, 0.0, None)]


def _grade(severity: float, secret: str, plugin: Any, after: str) -> float:
    """Returns how grave a secret is, 0 where it is none."""
    if hasattr(plugin, "entropy_limit"):
        long = 16 <= len(secret) <= 500
        return severity if long and plugin.calculate_shannon_entropy(secret) > plugin.entropy_limit else 0
    if hasattr(plugin, "is_formally_valid"):
        return severity if plugin.is_formally_valid(secret) else 0
    if "PRIVATE KEY" in secret.upper():  # a header alone is talk of keys
        return severity if regex.search(r"[A-Za-z0-9+/=]{20}", after) else 0.3
    if severity:
        return severity
    secret = secret.rstrip(".!?:")
    classes = sum(regex.search(own, secret) is not None for own in (r"[a-z]", r"[A-Z]", r"\d", r"[^\w\s]"))
    return 0.9 if len(secret) >= 6 and classes >= 2 and regex.search(r"\d|[^\w\s'.-]", secret) else 0.0


def _stands_in(secret: str) -> bool:
    """Returns whether a text stands in for a secret: a placeholder, a reference, letters in a row."""
    heuristic = importlib.import_module("detect_secrets.filters.heuristic")
    names = ("sequential_string", "potential_uuid", "templated_secret", "prefixed_with_dollar_sign")
    short = secret[:500]
    return bool(_PLACEHOLDER.search(short)) or any(getattr(heuristic, f"is_{name}")(short) for name in names)


_OF_A_TEXT = regex.compile(WORDS["of_a_text"], regex.I)
_PLACEHOLDER = regex.compile(WORDS["placeholder"], regex.I)


class Toxicity(RuleScorer):
    """Threats, contempt for groups, insults and profanity by a word list.

    The list is the offline fallback, in English: it knows what is said openly to someone's face and misses the rest; a
    [`~rmtrl.monitoring.classifier.Classifier`] does better.
    """

    def found(self, asked: str, answer: str, reference: str, clock: Clock) -> Iterator[Graded]:
        own = readings(answer)
        for pattern, severity in _toxic():
            yield from (Graded(*span, pattern.name, severity) for span in pattern.spans(own, clock))


@cache
def _toxic() -> list[tuple[Pattern, float]]:
    return [
        (Pattern(name, own), kind["severity"]) for name, kind in WORDS["toxic"].items() for own in kind["patterns"]
    ]


class Factuality(RuleScorer):
    """Numbers, names and claims of an answer that its reference does not hold.

    The reference is the column `reference`, and what was asked counts with it. Without the column it is what was asked
    alone where it asks of a text that it holds, as for a summary, in 30 words or more; any other question holds no
    facts, and nothing is found. Numbers are compared by value, rounded ones too. A claim is unheld by the share of its
    words that the reference lacks, or where it denies what the reference says; with an entailment model, by one minus
    the probability that the reference entails it.

    Args:
        entailment ([`~rmtrl.monitoring.classifier.Classifier`], *optional*): A model of premise and hypothesis whose
            label is that of entailment.

    Example:

    ```python
    >>> scorer = Factuality()
    >>> [own.reason for own in scorer.findings("Opened in 1889 by Gustave Eiffel.", reference="It opened in 1887.")]
    ['number 1889', 'name Gustave Eiffel']
    ```
    """

    def __init__(self, entailment: Classifier | None = None) -> None:
        self.entailment = entailment

    def applies(self, asked: str, reference: str) -> bool:
        return bool(reference.strip() or (len(asked.split()) >= _DOCUMENT_WORDS and _OF_A_TEXT.search(asked)))

    def found(self, asked: str, answer: str, reference: str, clock: Clock) -> Iterator[Graded]:
        if not self.applies(asked, reference):
            return
        held = "\n".join(own.text for text in (reference, asked) for own in readings(text))
        for reading in readings(answer)[:1]:
            yield from self._unheld(reading, held, reference or asked, clock)

    def _unheld(self, answer: Reading, held: str, reference: str, clock: Clock) -> Iterator[Graded]:
        values, known = sorted(value for *_, value, _ in numbers_in(held, clock)), stems(held)
        for start, end, said, value, digits in numbers_in(answer.text, clock):
            if not _holds(values, value, digits):
                yield Graded(*answer.span(start, end), f"number {shorten(said)}", 0.8)
        for start, end, name in names_in(answer.text, clock):
            if not stems(name, all_words=True) <= known:
                yield Graded(*answer.span(start, end), f"name {shorten(name)}", 0.7)
        facts = [(stems(own), _denies(own)) for *_, own in sentences_in(held, clock)]
        for start, end, claim in sentences_in(answer.text, clock):
            if not clock.left:
                clock.ran_out.append(_SENTENCE)
                return
            severity = self._severity_of(claim, reference, facts, known, clock)
            if severity > 0:
                yield Graded(*answer.span(start, end), "claim that the reference does not hold", severity)

    def _severity_of(
        self, claim: str, reference: str, facts: list[tuple[set[str], bool]], known: set[str], clock: Clock
    ) -> float:
        words = stems(claim)
        if len(words) < 3 or claim.endswith("?"):
            return 0.0
        if self.entailment is not None:
            return 1 - self.entailment.entails(reference, claim)
        overlap, denied = max(((len(words & own) / len(words), denies) for own, denies in facts), default=(0.0, False))
        if overlap > 0.6 and denied != _denies(claim):
            return 0.75
        return len(words - known) / len(words)


_SCALE, _DIGIT = "|".join(WORDS["scales"]), "|".join(name for name in WORDS["numbers"] if name != "one")
_NUMBER = Pattern(
    "numbers",
    rf"(?<![\w.])\d(?:[\d,]*\d)?(?:\.\d+)?(?!\d)(?:[ -]?(?:{_SCALE})\b)?"
    rf"|\b(?:{_DIGIT})(?:[ -](?:{_DIGIT}|{_SCALE}))*\b",
)
_LISTED = regex.compile(r"(?:^|\n)[ \t>*#-]*(?:step |point )?$", regex.I)  # what stands before the number of an item
_NAME = Pattern(
    "names",
    r"(?<![\w'])\p{Lu}[\p{L}'-]+(?: (?:(?:of|de|van|von|da|di|la|del|der|den|the) )?\p{Lu}[\p{L}'-]+)*",
    flags=0,
)
_SENTENCE = Pattern("sentences", r"\S[^\n]*?(?:[.!?]+[\"')\]]*(?=\s|$)|(?=\n)|$)")
_WORD = regex.compile(r"\p{L}[\p{L}'-]+|(?<![\w.,])\d{1,4}(?![\w.,]*\d)")
_DENIAL = regex.compile(r"\b(?:not|no|never|none|nothing|cannot|neither|without|failed to|denied)\b|n't\b", regex.I)
_SMALL = frozenset(WORDS["small"].split())


def numbers_in(text: str, clock: Clock) -> Iterator[tuple[int, int, str, float, int]]:
    """Yields the numbers of a text: start, end, as written, value, significant digits; those of items are left out."""
    for (start, end), said in _NUMBER.spans([Reading(text)], clock).items():
        marked = said.isdigit() and text[end : end + 1] in (".", ")")
        if not (marked and _LISTED.search(text[max(0, start - 20) : start])):
            yield start, end, said, _value(said.lower()), len(regex.sub(r"\D", "", said).strip("0"))


def _value(said: str) -> float:
    """Returns the value of a number in digits or words, such as "2.5 million" or "twenty-two thousand"."""
    total, part = 0.0, 0.0
    for word in regex.findall(r"[\d.,]+|[a-z]+", said):
        if word in WORDS["scales"]:
            scale = WORDS["scales"][word]
            total, part = (total, part * scale) if scale == 100 else (total + (part or 1) * scale, 0.0)
        else:
            digits = word.replace(",", "").rstrip(".") or "0"
            part += WORDS["numbers"][word] if word in WORDS["numbers"] else float(digits)
    return total + part


def _holds(values: list[float], value: float, digits: int) -> bool:
    """Returns whether one of the values is this one, or rounds to it at two significant digits or more."""
    close = (own for own in values if math.isclose(own, value, rel_tol=0.1, abs_tol=1e-12))
    return any(own == value or (digits >= 2 and float(f"{own:.{digits}g}") == value) for own in close)


def names_in(text: str, clock: Clock) -> Iterator[tuple[int, int, str]]:
    """Yields start, end and name; the first word of a sentence alone is none, for every first word looks like one."""
    for (start, end), name in _NAME.spans([Reading(text)], clock).items():
        first, _, rest = name.partition(" ")
        before = text[max(0, start - 9) : start].rstrip(" \"'(*#>-")
        opens = not before or before[-1] in ".!?:\n"
        if first.lower() in _SMALL or (opens and not rest):
            start, name = start + len(first) + 1, rest
        if name:
            yield start, end, name


def sentences_in(text: str, clock: Clock) -> Iterator[tuple[int, int, str]]:
    """Yields start, end and text of each sentence."""
    return ((*span, said) for span, said in _SENTENCE.spans([Reading(text)], clock).items())


def stems(text: str, *, all_words: bool = False) -> set[str]:
    """Returns the first five letters of the words of a text, without those that say nothing unless all are wanted."""
    words = (word.lower().removesuffix("'s").strip("'-") for word in _WORD.findall(text))
    return {part[:5] for word in words for part in word.split("-") if part and (all_words or part not in _SMALL)}


def _denies(text: str) -> bool:
    return len(_DENIAL.findall(text)) % 2 == 1
