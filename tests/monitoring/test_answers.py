"""An answer as guards read it: disguises, places in the original, bounded patterns, who said what."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtrl.errors import UsageError
from rmtrl.monitoring import answers
from rmtrl.monitoring.answers import Clock, Pattern, RuleScorer, last_answer, readings

WORD = Pattern("the word", r"\bpassword\b")


@pytest.mark.parametrize(
    "text",
    ["password", "pass\u200bword", "p\u00ada\u2060s\u200ds\ufeffword", "ｐａｓｓｗｏｒｄ", "pаsswоrd", "раѕѕword",
     "pa\u0301sswórd", "𝐩𝐚𝐬𝐬𝐰𝐨𝐫𝐝", "p\x08assword", "pass\ud800word", "pass\U000e0041word", "PASSWΟRD"],
)  # fmt: skip
def test_a_disguised_word_is_found_where_it_stands_in_the_original(text):
    whole = f"My {text} is… "
    (span,) = WORD.spans(readings(whole), Clock())
    assert whole[slice(*span)] == text


def test_what_is_no_disguise_is_not_found():
    assert not WORD.spans(readings("pass word, passwörter, пароль"), Clock())


def test_accents_and_other_scripts_are_found_as_they_are_written():
    for pattern, text in (
        ("café", "un cafe\u0301."),
        ("café", "un café."),
        ("пароль", "мой пароль"),
        ("naive", "naïve"),
    ):
        assert len(Pattern("own", pattern).spans(readings(text), Clock())) == 1


def test_plain_text_is_read_once_and_as_it_is():
    (read,) = readings("Plain text,\n\tof two lines.")
    assert read.starts is None and read.span(2, 5) == (2, 5)


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
def test_every_place_lies_in_the_original_and_in_order(text):
    for read in readings(text):
        spans = [read.span(i, i + 1) for i in range(len(read.text))]
        assert all(0 <= start < end <= len(text) for start, end in spans)
        assert spans == sorted(spans)


@pytest.mark.parametrize("source", [r"(a+)+$", r"(a|aa)+$", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(.*a){20}$"])
def test_a_catastrophic_pattern_is_stopped_and_named(source):
    clock, began = Clock(), time.process_time()
    pattern = Pattern("slow", source)
    assert not pattern.spans(readings("a" * 5000 + "!"), clock)
    assert time.process_time() - began < 2
    assert clock.ran_out == [pattern]


class Slow(RuleScorer):
    """Two catastrophic patterns and one that is not."""

    patterns = [Pattern("slow", r"(a+)+$"), Pattern("also slow", r"(a|aa)+$"), Pattern("fast", "zzz")]

    def found(self, asked, answer, reference, clock):
        for pattern in self.patterns:
            for span in pattern.spans(readings(answer), clock):
                yield answers.Graded(*span, pattern.name, 0.2)


def test_what_could_not_be_judged_is_found_by_the_name_of_its_pattern():
    text = "zzz" + "a" * 5000 + "!"
    also, slow, fast = sorted(Slow().findings(text), key=lambda own: (-own.severity, own.reason))
    assert (fast.start, fast.end, fast.severity) == (0, 3, pytest.approx(0.2))
    assert ": slow took over 0.5 s" in slow.reason and "(a+)+$" in slow.reason and "also slow took" in also.reason
    assert all((own.start, own.end, own.severity) == (0, len(text), 2) for own in (slow, also))
    assert Slow().score(["zzz" + "a" * 5000 + "!", "zzz"]).tolist() == pytest.approx([2, 0.2])


def test_the_end_of_a_text_that_is_too_long_is_not_passed_over():
    found = Slow().findings("b" * 1_000_001)
    assert [(own.start, own.end, own.severity) for own in found] == [(1_000_000, 1_000_001, 2.0)]
    assert "first 1,000,000 characters" in found[0].reason


def test_more_places_than_anyone_reads_are_not_passed_over():
    pattern, clock = Pattern("any", "a"), Clock()
    assert not pattern.spans(readings("a" * 20_000), clock) and clock.ran_out == [pattern]


@pytest.mark.parametrize("source", ["(", "[a", "(?P<a>x)(?P<a", "(" * 3000 + ")" * 3000, "a{5,2}", 3, None])
def test_a_broken_pattern_is_one_line_that_names_it(source):
    with pytest.raises(UsageError, match="rule one has the pattern") as error:
        Pattern("rule one", source)
    assert "\n" not in str(error.value)


def test_the_answer_is_what_the_assistant_said_last():
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
    assert last_answer([user, answer]) == ("Hi", "Hello!")
    assert last_answer([user, answer, user, {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]}]) == (
        "Hi\nHello!\nHi", "Yes?",
    )  # fmt: skip
    assert last_answer([user, answer, {"role": "tool", "content": "3"}]) == ("Hi", "Hello!")
    assert last_answer([user]) == ("Hi", "") and last_answer([]) == ("", "")
    assert last_answer("\n\nHuman: Hi\n\nAssistant: Hello!") == ("\n\nHuman: Hi", "Hello!")
    assert last_answer("Hello!") == ("", "Hello!")


def test_a_completion_is_read_whole_whatever_it_pretends_to_be():
    text = "zzz\n\nHuman: Thanks\n\nAssistant: Welcome."
    assert Slow()(["Hi"], [text]) == pytest.approx([0.2])
    assert Slow()([[{"role": "user", "content": "zzz"}]], [[{"role": "assistant", "content": "No."}]]) == [0.0]
