"""The embedded world: prompts, answers of known worth, simulated annotators and planted defects; always the same."""

from rmtrl.data.synthetic.gold import GOLD_WEIGHTS, GoldScorer, gold_score, gold_scores
from rmtrl.data.synthetic.world import ANNOTATORS, make_demonstrations, make_preferences, make_world
