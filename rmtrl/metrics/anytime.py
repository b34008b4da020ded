"""Evidence that verdicts fell below one half, valid however often one looks: an e-process by betting.

The null: E[x_t | x_1 … x_{t−1}] ≥ 1/2 at every t, for verdicts x_t in [0, 1]. Whoever stakes a share λ_t of a capital
of 1 against it, chosen before x_t is seen, holds K_t = ∏ (1 + λ_i (1/2 − x_i)) (Waudby-Smith and Ramdas 2023,
https://arxiv.org/abs/2010.09686, their capital process of a mean, one-sided). Under the null the mean of K never
rises, so that K is ever 1/α or more with chance α at most, however often one looks (Ville 1939).

Departure from the paper: a policy in training first gains and falls late, if at all. So the capital lies on several
stakes, as in their diversified bets, 0 among them, and after each decided verdict a share of all of it is spread over
them anew (fixed share: Herbster and Warmuth 1998). That keeps the sum, hence the guarantee; a fall after a long gain
costs the logarithm of that share, not all that the gain has lost.
"""

import numpy as np
from numpy.typing import ArrayLike

from rmtrl.errors import UsageError
from rmtrl.metrics.estimates import Floats

STAKES = (0.0, 0.5, 1.0)  # Kelly's for 1/2, 3/8 and 1/4 of the decided verdicts won
WEIGHTS = (0.5, 0.25, 0.25)
SHARE = 0.01


def spread(capital: float = 1.0) -> Floats:
    """Returns what of a capital lies on each stake at the start, `(K,)`: half of it is kept.

    Example:

    ```python
    >>> spread(0.8).tolist()
    [0.4, 0.2, 0.2]
    ```
    """
    return capital * np.array(WEIGHTS)


def wagered(
    wealth: ArrayLike, verdicts: ArrayLike, *, stakes: ArrayLike = STAKES, weights: ArrayLike = WEIGHTS,
    share: float = SHARE,
) -> Floats:  # fmt: skip
    """Returns what lies on each of K stakes after each of T verdicts, `(…, T, K)`; the sum over K is the capital.

    A verdict of 1/2 changes nothing, so ties may be left out.

    Args:
        wealth (`(…, K)` array): What lies on each stake before the first.
        verdicts (`(…, T)` array): 1 where the policy is better than its reference, 0 where it is worse, 0.5 for a tie,
            or a share of votes between.
        stakes (`(K,)` array): Shares λ staked against the policy, from 0 to below 2.
        weights (`(K,)` array): How what is spread anew falls to them; of sum 1.
        share (`float`): Share of the capital that is spread anew after each verdict that is no tie.

    Raises:
        UsageError: If a verdict is not between 0 and 1.

    Example:

    ```python
    >>> [round(float(k), 3) for k in wagered(spread(), [1, 0, 0.5, 0, 0]).sum(-1)]
    [0.812, 0.922, 0.922, 1.075, 1.29]
    ```
    """
    verdicts, stakes, weights = (np.asarray(own, np.float64) for own in (verdicts, stakes, weights))
    if not ((verdicts >= 0) & (verdicts <= 1)).all():
        bad = verdicts[~((verdicts >= 0) & (verdicts <= 1))][0]
        raise UsageError(f"got the verdict {bad:g}; wanted 1 for better, 0 for worse, 0.5 for a tie, or between")
    held, path = np.asarray(wealth, np.float64), np.empty((*verdicts.shape, len(stakes)))
    for t in range(verdicts.shape[-1]):
        verdict = verdicts[..., t, None]
        held = held * (1 + stakes * (0.5 - verdict))
        moved = share * (verdict != 0.5)
        path[..., t, :] = held = (1 - moved) * held + moved * held.sum(-1, keepdims=True) * weights
    return path
