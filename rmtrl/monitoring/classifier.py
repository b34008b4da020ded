"""Any text classification model of the hub as a scorer of severity: the probability of one of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rmtrl.errors import FreshHeadError, UsageError
from rmtrl.monitoring.answers import NOT_JUDGED, Clock, Graded, RuleScorer, readings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_WINDOWS, _BATCH, _OVERLAP_TOKENS, _LONGEST_TOKENS = 64, 16, 32, 1024


class Classifier(RuleScorer):
    """The probability of a label, read in windows of the model's length: the severity is that of the worst window.

    Args:
        model ([`~transformers.PreTrainedModel`]): A sequence classification model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, a fast one.
        label (`str`): The label whose probability is the severity, as its configuration names it.

    Raises:
        UsageError: If the model has no such label.

    Example:

    ```python
    >>> scorer = Classifier.from_pretrained("unitary/toxic-bert", "toxic")
    >>> guard = Guard(scorer, 0.5, name="toxicity")
    ```
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str) -> None:
        known = model.config.id2label or {}
        labels = {str(name).lower(): int(index) for index, name in known.items()}
        if label.lower() not in labels:
            raise UsageError(f"the classifier has no label {label!r}; it has {', '.join(known.values())}")
        self.model, self.tokenizer, self.label = model.eval(), tokenizer, label
        self.index = labels[label.lower()]
        self.alone = len(labels) == 1 or model.config.problem_type == "multi_label_classification"

    @classmethod
    def from_pretrained(cls, path: str, label: str, *, device: str | None = None) -> Classifier:
        """Returns the classifier at a folder or hub id.

        Raises:
            ModelError: If there is none.
            FreshHeadError: If its head is untrained, so that its probabilities would be random.
            UsageError: If it has no such label.
        """
        from transformers import AutoModelForSequenceClassification

        from rmtrl.models import device_or_best, load_model, load_tokenizer

        def check(model: Any, info: Mapping[str, Any]) -> None:
            if lacks := sorted(info["missing_keys"]):
                raise FreshHeadError(f"{path} lacks {lacks[0]}, so it would guess; give a trained text classifier")

        read = AutoModelForSequenceClassification.from_pretrained
        tokenizer = load_tokenizer(path, kind="text classifier")
        model = load_model(path, read, check, kind="text classifier").to(device_or_best(device))
        return cls(model, tokenizer, label)

    def found(self, asked: str, answer: str, reference: str, clock: Clock) -> Iterator[Graded]:
        """Yields every window of an answer with the probability of the label; what is beyond 64 is not judged."""
        read = readings(answer)[0]
        if not read.text.strip():
            return
        windows = self.windows(read.text)
        yield from (Graded(*read.span(start, end), f"{self.label} {p:.2f}", p) for start, end, p in windows)
        if (last := windows[-1][1]) < len(read.text.rstrip()) and len(windows) == _MOST_WINDOWS:
            said = f"not judged: only {_MOST_WINDOWS} windows are read"
            yield Graded(read.span(last, last)[0], len(answer), said, NOT_JUDGED)

    def entails(self, premise: str, hypothesis: str) -> float:
        """Returns the highest probability of the label over windows of the premise, each with the whole hypothesis.

        A hypothesis of more than half the model's length is entailed by nothing.
        """
        if len(self.tokenizer(hypothesis, add_special_tokens=False)["input_ids"]) > self.limit // 2:
            return 0.0
        return max(probability for *_, probability in self.windows(premise, hypothesis))

    def windows(self, text: str, beside: str | None = None) -> list[tuple[int, int, float]]:
        """Returns start, end and probability of each window of a text, each with all of the text beside it."""
        import torch

        settings: dict[str, Any] = {"truncation": "only_first", "max_length": self.limit, "stride": _OVERLAP_TOKENS}
        made = self.tokenizer(text, beside, return_overflowing_tokens=True, return_offsets_mapping=True, **settings)
        names = [name for name in self.tokenizer.model_input_names if name in made]
        rows, found = [{name: made[name][i] for name in names} for i in range(len(made["input_ids"]))], []
        for start in range(0, min(len(rows), _MOST_WINDOWS), _BATCH):
            batch = self.tokenizer.pad(rows[start : min(start + _BATCH, _MOST_WINDOWS)], return_tensors="pt")
            with torch.no_grad():
                logits = self.model(**batch.to(self.model.device)).logits.float()
            found += (logits.sigmoid() if self.alone else logits.softmax(-1))[:, self.index].tolist()
        return [(*_place(made, i), probability) for i, probability in enumerate(found)]

    @property
    def limit(self) -> int:
        """The tokens of one window."""
        from rmtrl.models import position_limit

        return min(position_limit(self.model) or _LONGEST_TOKENS, self.tokenizer.model_max_length, _LONGEST_TOKENS)


def _place(made: Any, window: int) -> tuple[int, int]:
    """Returns where a window of the text begins and ends."""
    pairs = zip(made.sequence_ids(window), made["offset_mapping"][window], strict=True)
    spans = [span for sequence, span in pairs if sequence == 0]
    return (spans[0][0], spans[-1][1]) if spans else (0, 0)
