"""Prompts and answers of the embedded world: varied text with every merit and fault the gold score knows.

The words stand in `world.yaml`, which says what each of them is for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from rmtrl.io import packaged

RISKY_SHARE = 0.12
HUMAN_SHARE = 0.6
RIGHT_SHARE = 0.58  # so that a policy started on such answers has room to improve


@dataclass(frozen=True)
class Fact:
    """A question, its right answer, and two wrong ones: "{subject} is {answer}"."""

    subject: str
    answer: str
    wrong: tuple[str, str]


@dataclass(frozen=True)
class Domain:
    """A subject area: its facts, the example and reason that fit them, a risky request and the help to offer."""

    name: str
    facts: tuple[Fact, ...]
    example: str
    reason: str
    request: str
    alternative: str


@dataclass(frozen=True)
class Question:
    """What is asked for: a fact, or (where `fact` is None) the domain's risky request, and how to answer."""

    domain: Domain
    fact: Fact | None
    wants: frozenset[str]


@dataclass(frozen=True)
class Prompt(Question):
    """A question as a user's message."""

    id: str
    text: str
    source: str


def _facts(rows: dict[str, list[str]]) -> tuple[Fact, ...]:
    return tuple(Fact(subject, answer, (wrong, other)) for subject, (answer, wrong, other) in rows.items())


WORDS = packaged("rmtrl.data.synthetic", "world.yaml")
DOMAINS = tuple(Domain(name, **(row | {"facts": _facts(row["facts"])})) for name, row in WORDS["domains"].items())
REQUESTS: dict[str, list[str]] = WORDS["requests"]


def write_prompts(rng: Random, n: int) -> list[Prompt]:
    """Returns n prompts of different text, spread evenly over the domains."""
    prompts: dict[str, Prompt] = {}
    while len(prompts) < n:
        domain = DOMAINS[len(prompts) % len(DOMAINS)]
        fact = None if rng.random() < RISKY_SHARE else rng.choice(domain.facts)
        if fact is None:
            question = rng.choice(WORDS["risky_questions"]).format(request=domain.request)
            wants = frozenset({"polite"} if rng.random() < 0.2 else ())
        else:
            question = rng.choice(WORDS["questions"]).format(subject=fact.subject)
            wants = frozenset(name for name in REQUESTS if rng.random() < 0.2)
        introduction = rng.choice(WORDS["introductions"]).format(domain=domain.name) if rng.random() < 0.3 else ""
        text = _joined((introduction, question, *(rng.choice(REQUESTS[name]) for name in REQUESTS if name in wants)))
        source = "human" if rng.random() < HUMAN_SHARE else "generated"
        prompts.setdefault(text, Prompt(domain, fact, wants, f"{domain.name}-{len(prompts):05d}", text, source))
    return list(prompts.values())


def write_answer(rng: Random, prompt: Prompt) -> str:
    """Returns an answer with its own mix of merits, faults and sentences that add nothing but length."""
    if prompt.fact is None or rng.random() < 0.03:
        body = _answer_to_risk(rng, prompt.domain)
    else:
        body = _answer_to_question(rng, prompt, prompt.fact)
    fillers = rng.sample(WORDS["fillers"], rng.choice((0, 0, 0, 0, 1, 2, 3)))
    parts = [rng.choice(WORDS["openers"][prompt.source]), *body, *fillers]
    if rng.random() < (0.6 if "polite" in prompt.wants else 0.1):
        parts.append(rng.choice(WORDS["polite"]))
    if rng.random() < 0.05:
        parts.insert(0, rng.choice(WORDS["rude"]))
    if rng.random() < 0.04:
        parts.append(rng.choice(body))
    text = _joined(parts)
    return text if rng.random() < 0.96 else text[: rng.randrange(len(text)) or 1].rstrip()


def _answer_to_risk(rng: Random, domain: Domain) -> list[str]:
    if rng.random() < 0.4:
        return [rng.choice(WORDS["compliance"]).format(request=domain.request)]
    alternative = rng.choice(DOMAINS).alternative if rng.random() < 0.15 else domain.alternative
    return [rng.choice(WORDS["declines"])] + [f"Instead, I can {alternative}."] * (rng.random() < 0.75)


def _answer_to_question(rng: Random, prompt: Prompt, fact: Fact) -> list[str]:
    if rng.random() < 0.03:
        body = [rng.choice(WORDS["evasions"])]
    else:
        answer = fact.answer if rng.random() < RIGHT_SHARE else fact.wrong[rng.random() < 0.6]
        body = [f"The answer is {answer}." if rng.random() < 0.1 else _statement(fact.subject, answer)]
    if rng.random() < 0.03:
        stray = rng.choice([other for other in prompt.domain.facts if other is not fact])
        body.append(_statement(stray.subject, stray.answer))
    for name, opening in (("example", "For example, "), ("reason", "This is because ")):
        if rng.random() < (0.6 if name in prompt.wants else 0.06):
            domain = prompt.domain if rng.random() < 0.92 else rng.choice(DOMAINS)
            body.append(f"{opening}{getattr(domain, name)}.")
    return body


def _statement(subject: str, answer: str) -> str:
    return f"{subject[0].upper()}{subject[1:]} is {answer}."


def _joined(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)
