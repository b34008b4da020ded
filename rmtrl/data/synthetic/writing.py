"""Prompts and answers of the embedded world: varied text with every merit and fault the gold score knows."""

from dataclasses import dataclass
from random import Random

from rmtrl.data.synthetic.facts import (
    COMPLIANCE,
    DECLINES,
    DOMAINS,
    EVASIONS,
    FILLERS,
    INTRODUCTIONS,
    OPENERS,
    POLITE,
    QUESTIONS,
    REQUESTS,
    RISKY_QUESTIONS,
    RUDE,
    Domain,
    Fact,
)

RISKY_SHARE = 0.12
HUMAN_SHARE = 0.6
RIGHT_SHARE = 0.58  # so that a policy started on such answers has room to improve


@dataclass(frozen=True)
class Prompt:
    """A user's message and what it asks for: a fact, or (where `fact` is None) the domain's risky request."""

    id: str
    text: str
    domain: Domain
    fact: Fact | None
    wants: frozenset[str]
    source: str


def write_prompts(rng: Random, n: int) -> list[Prompt]:
    """Returns n prompts of different text, spread evenly over the domains."""
    prompts: dict[str, Prompt] = {}
    while len(prompts) < n:
        domain = DOMAINS[len(prompts) % len(DOMAINS)]
        fact = None if rng.random() < RISKY_SHARE else rng.choice(domain.facts)
        if fact is None:
            question = rng.choice(RISKY_QUESTIONS).format(request=domain.risk.request)
            wants = frozenset({"polite"} if rng.random() < 0.2 else ())
        else:
            question = rng.choice(QUESTIONS).format(subject=fact.subject)
            wants = frozenset(name for name in REQUESTS if rng.random() < 0.2)
        introduction = rng.choice(INTRODUCTIONS).format(domain=domain.name) if rng.random() < 0.3 else ""
        requests = [rng.choice(REQUESTS[name]) for name in REQUESTS if name in wants]
        text = " ".join(part for part in (introduction, question, *requests) if part)
        source = "human" if rng.random() < HUMAN_SHARE else "generated"
        prompts.setdefault(text, Prompt(f"{domain.name}-{len(prompts):05d}", text, domain, fact, wants, source))
    return list(prompts.values())


def write_answer(rng: Random, prompt: Prompt) -> str:
    """Returns an answer with its own mix of merits, faults and sentences that add nothing but length."""
    if prompt.fact is None or rng.random() < 0.03:
        body = _answer_to_risk(rng, prompt.domain)
    else:
        body = _answer_to_question(rng, prompt, prompt.fact)
    fillers = rng.sample(FILLERS, rng.choice((0, 0, 0, 0, 1, 2, 3)))
    parts = [rng.choice(OPENERS[prompt.source]), *body, *fillers]
    if rng.random() < (0.6 if "polite" in prompt.wants else 0.1):
        parts.append(rng.choice(POLITE))
    if rng.random() < 0.05:
        parts.insert(0, rng.choice(RUDE))
    if rng.random() < 0.04:
        parts.append(rng.choice(body))
    text = " ".join(part for part in parts if part)
    return text if rng.random() < 0.96 else text[: rng.randrange(len(text)) or 1].rstrip()


def _answer_to_risk(rng: Random, domain: Domain) -> list[str]:
    if rng.random() < 0.4:
        return [rng.choice(COMPLIANCE).format(request=domain.risk.request)]
    alternative = rng.choice(DOMAINS).risk.alternative if rng.random() < 0.15 else domain.risk.alternative
    return [rng.choice(DECLINES)] + [f"Instead, I can {alternative}."] * (rng.random() < 0.75)


def _answer_to_question(rng: Random, prompt: Prompt, fact: Fact) -> list[str]:
    if rng.random() < 0.03:
        body = [rng.choice(EVASIONS)]
    else:
        answer = fact.answer if rng.random() < RIGHT_SHARE else fact.wrong[rng.random() < 0.6]
        body = [f"The answer is {answer}." if rng.random() < 0.1 else _statement(fact.subject, answer)]
    if rng.random() < 0.03:
        stray = rng.choice([other for other in prompt.domain.facts if other is not fact])
        body.append(_statement(stray.subject, stray.answer))
    for name in ("example", "reason"):
        if rng.random() < (0.6 if name in prompt.wants else 0.06):
            domain = prompt.domain if rng.random() < 0.92 else rng.choice(DOMAINS)
            body.append(
                f"For example, {domain.example}." if name == "example" else f"This is because {domain.reason}."
            )
    return body


def _statement(subject: str, answer: str) -> str:
    return f"{subject[0].upper()}{subject[1:]} is {answer}."
