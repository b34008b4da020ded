"""Text classifiers as guards: labels, windows with places, entailment, what is refused."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from rmtrl.errors import FreshHeadError, UsageError
from rmtrl.monitoring.answers import NOT_JUDGED
from rmtrl.monitoring.classifier import Classifier
from rmtrl.monitoring.embedded import Factuality
from rmtrl.monitoring.rules import Policy
from rmtrl.tiny import make_tiny_llama, make_tiny_tokenizer


@pytest.fixture(scope="module")
def made():
    """A classifier of three labels, whose probabilities are of no meaning but differ."""
    tokenizer = make_tiny_tokenizer(["all the words of a long answer are here, and some more of them"], 300)
    torch.manual_seed(0)
    config = make_tiny_llama(tokenizer, hidden_size=32).config
    config.id2label, config.pad_token_id = {0: "fine", 1: "Toxic", 2: "threat"}, tokenizer.pad_token_id
    config.max_position_embeddings = 64
    return LlamaForSequenceClassification(config).eval(), tokenizer


def test_the_severity_is_the_probability_of_the_label(made):
    model, tokenizer = made
    scorer = Classifier(model, tokenizer, "toxic")
    batch = tokenizer("a long answer", return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1)[0, 1].item()
    assert scorer(["Hi"], ["a long answer"]) == pytest.approx([expected], abs=1e-6)
    assert scorer(["Hi", "Hi"], ["", " \n"]) == [0, 0]


def test_a_long_answer_is_read_in_windows_that_cover_it(made):
    scorer = Classifier(*made, "toxic")
    text = "all the words of a long answer " * 40
    found = scorer.findings([{"role": "assistant", "content": text}])
    assert len(found) > 3 and found[0].start == 0 and found[-1].end >= len(text.rstrip())
    assert all(later.start < earlier.end for earlier, later in zip(found, found[1:], strict=False))
    assert scorer.score([text])[0] == pytest.approx(max(own.severity for own in found))


def test_what_is_beyond_the_windows_is_not_passed_over(made):
    text = "all the words of a long answer " * 800
    *_, last = Classifier(*made, "toxic").findings([{"role": "assistant", "content": text}])
    assert last.severity == NOT_JUDGED and last.end == len(text) and "64 windows" in last.reason


def test_places_are_those_of_the_original(made):
    text = "\u200b\u200ball \u200bthe words\u200b"
    (own,) = Classifier(*made, "threat").findings([{"role": "assistant", "content": text}])
    assert text[own.start : own.end].replace("\u200b", "") == "all the words"


def test_an_entailment_model_judges_claims_against_every_part_of_the_reference(made):
    scorer = Classifier(*made, "fine")
    reference, claim = "all the words of a long answer " * 20, "bananas ripen quickly"
    best = max(probability for *_, probability in scorer.windows(reference, claim))
    assert scorer.entails(reference, claim) == best
    found = Factuality(scorer).findings([{"role": "assistant", "content": claim}], reference=reference)
    assert [own.severity for own in found] == pytest.approx([1 - best])
    assert scorer.entails(reference, claim * 30) == 0


def test_an_unknown_label_is_one_line_with_those_there_are(made):
    with pytest.raises(UsageError, match="no label 'rude'; it has fine, Toxic, threat"):
        Classifier(*made, "rude")


def test_a_classifier_is_loaded_and_a_fresh_head_refused(made, tmp_path):
    model, tokenizer = made
    for name, own in (("trained", model), ("fresh", LlamaForCausalLM(model.config))):
        own.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    scorer = Classifier.from_pretrained(str(tmp_path / "trained"), "Toxic", device="cpu")
    assert np.allclose(scorer.score(["a word"]), Classifier(model, tokenizer, "toxic").score(["a word"]), atol=1e-6)
    with pytest.raises(FreshHeadError, match="so it would guess"):
        Classifier.from_pretrained(str(tmp_path / "fresh"), "Toxic", device="cpu")
    settings = f"{{model: {tmp_path / 'trained'}, label: toxic}}"  # in place of the word list
    policy = Policy.from_yaml(f"{{schema: rmtrl/guard-policy/1, guards: {{toxicity: {settings}}}}}")
    assert isinstance(policy.guards["toxicity"].scorer, Classifier)
