"""The embedded world: prompts, answers of known worth, simulated annotators and planted defects; always the same."""

from rmtrl.data.synthetic.gold import GOLD_WEIGHTS, GoldScorer, gold_score, gold_scores
from rmtrl.data.synthetic.pairs import (
    ANNOTATORS,
    Annotator,
    PlantedDefects,
    make_demonstrations,
    make_preferences,
    planted_defects,
)
from rmtrl.data.synthetic.whole import World, make_world

__all__ = [
    "ANNOTATORS",
    "GOLD_WEIGHTS",
    "Annotator",
    "GoldScorer",
    "PlantedDefects",
    "World",
    "gold_score",
    "gold_scores",
    "make_demonstrations",
    "make_preferences",
    "make_world",
    "planted_defects",
]
