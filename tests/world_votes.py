"""The votes of an embedded world, as the detector of biases takes them."""

import pandas as pd

CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}


def judged(world):
    """Votes of a world: annotator, pair, prompt, whether a won, how much longer a is."""
    words = {row["item_id"]: len(row["response"].split()) for row in world.responses}
    votes = pd.DataFrame(world.votes)
    longer = votes.a.map(words) - votes.b.map(words)
    return votes.assign(pair=votes.a + " " + votes.b, wins=votes.choice.map(CHOICES), longer=longer)
