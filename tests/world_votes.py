"""The votes of an embedded world, as the detector of biases takes them."""


def judged(world):
    """Votes of a world as arrays: annotator, pair, prompt, whether a won, how much longer a is."""
    words = {row["item_id"]: len(row["response"].split()) for row in world.responses}
    return (
        [v["annotator"] for v in world.votes],
        [f"{v['a']} {v['b']}" for v in world.votes],
        [v["prompt_id"] for v in world.votes],
        [{"a": 1.0, "b": 0.0, "tie": 0.5}[v["choice"]] for v in world.votes],
        [words[v["a"]] - words[v["b"]] for v in world.votes],
    )
