"""A Bayesian last layer: the Laplace approximation of Bradley–Terry in the weights of a trained head."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, optimize, special
from sklearn.linear_model import LogisticRegression

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.io import replacing
from rmtrl.reward.heads import last_layers
from rmtrl.reward.scorer import RewardScorer
from rmtrl.reward.uncertainty import Floats, ScoreDistribution, UncertainScorer, check_pairs
from rmtrl.types import Conversation

logger = logging.getLogger(__name__)

FILE = "laplace.npz"
_PROBE = "The sky is blue because air scatters short waves of light more than long ones."
_SAME_MODEL = 0.05  # relative distance of features that precision and hardware explain
_PRECISIONS = (1e-6, 1e6)


class LaplaceScorer(UncertainScorer):
    """
    Scores with a reward model, and with the doubt that the training pairs leave in its last layer.

    The reward is θ·z in the features z that enter the last layer. Given pairs with Δz = z₊ − z₋, the posterior of θ is
    taken as N(θ, H⁻¹) with H = Σ σ'(θ·Δz) Δz Δzᵀ + λI; a score has the standard deviation √(zᵀH⁻¹z), a margin
    √(ΔzᵀH⁻¹Δz). It knows what the pairs say little about, given these features, and not whether the features are
    right. Fit it on the pairs that the model was trained on. Memory: a `(d, d)` matrix, and the features of all pairs
    while fitting.

    After `fit`: `coef_`, `(d,)`; `covariance_` = H⁻¹, `(d, d)`; `prior_precision_`; `n_pairs_`; `center_`, `(d,)`, the
    mean features.

    Args:
        scorer ([`RewardScorer`]):
            A model with one reward.
        prior_precision (`float` or `str`, *optional*, defaults to `1.0`):
            λ, in units of 1/θ²; `"auto"` takes the one with the largest marginal likelihood of the pairs.
        refit (`bool`, *optional*, defaults to `False`):
            Whether θ is fitted to the pairs, under the prior, instead of taken from the model. A score is then θ·z.
        centered (`bool`, *optional*, defaults to `False`):
            Whether the spread of a score is that of its distance from an average answer, z − `center_` in place of z.
            Pairs say nothing about the zero of scores, so else most of the spread may be one constant. Margins are the
            same either way.
        aggregation, k, variance_weight (*optional*):
            As in [`UncertainScorer`].

    Raises:
        ModelError: If the model has several outputs.
        UsageError: If a setting cannot be used.

    Example:

    ```python
    >>> scorer = LaplaceScorer(RewardScorer.from_pretrained("outputs/rm"), aggregation="lower", centered=True)
    >>> scorer.fit(chosen, rejected).margins(chosen[:1], rejected[:1]).std.shape
    (1,)
    ```
    """

    coef_: Floats | None = None

    def __init__(
        self, scorer: RewardScorer, prior_precision: float | str = 1.0, *, refit: bool = False, centered: bool = False,
        **pessimism: Any,
    ) -> None:  # fmt: skip
        super().__init__(**pessimism)
        if scorer.head.n_outputs > 1:
            raise ModelError(
                f"the model has {scorer.head.n_outputs} outputs; a Bayesian last layer needs one reward "
                "(for several heads: HeadEnsembleScorer)"
            )
        if prior_precision != "auto" and (isinstance(prior_precision, str) or not 0 < prior_precision < np.inf):
            raise UsageError(f"got prior_precision={prior_precision!r}; wanted a number above 0, or 'auto'")
        self.scorer, self.scorers = scorer, [scorer]
        self.prior_precision = prior_precision
        self.refit = refit
        self.centered = centered

    def fit(
        self, chosen: Sequence[Conversation], rejected: Sequence[Conversation], labels: ArrayLike | None = None
    ) -> "LaplaceScorer":
        """Returns the scorer itself, with the posterior that the pairs leave.

        Args:
            chosen, rejected (`Sequence[Conversation]`): The two sides of each pair.
            labels (`(N,)` array, *optional*): Share of votes for chosen, in [0, 1]; 1 when absent.

        Raises:
            DataError: If there is no pair, the sides are not of one length, or a label is out of range.
        """
        check_pairs(chosen, rejected)
        if not len(chosen):
            raise DataError("got no pairs to fit the last layer on; give those that the model was trained on")
        shares = np.ones(len(chosen)) if labels is None else np.asarray(labels, dtype=np.float64)
        if shares.shape != (len(chosen),) or not ((shares >= 0) & (shares <= 1)).all():
            raise DataError(f"got labels of shape {shares.shape} for {len(chosen)} pairs; wanted one in [0, 1] a pair")
        features = self._features([*chosen, *rejected])
        differences = features[: len(chosen)] - features[len(chosen) :]
        own = self._head()[0]

        def mode(prior_precision: float) -> Floats:
            return map_coefficients(differences, shares, prior_precision) if self.refit else own

        if isinstance(self.prior_precision, str):
            self.prior_precision_ = _best_precision(differences, shares, mode, fixed=not self.refit)
        else:
            self.prior_precision_ = float(self.prior_precision)
        self.coef_ = mode(self.prior_precision_)
        factor = linalg.cho_factor(precision_matrix(differences, self.coef_, self.prior_precision_))
        self.covariance_: Floats = linalg.cho_solve(factor, np.eye(len(own)))
        self.center_: Floats = features.mean(axis=0)
        self.n_pairs_ = len(chosen)
        return self

    def distribution(self, conversations: Sequence[Conversation]) -> ScoreDistribution:
        """Returns the score of each conversation and its posterior standard deviation.

        Raises:
            UsageError: If the scorer is not fitted.
        """
        features, bias = self._features(conversations), 0.0 if self.refit else self._head()[1]
        spread = features - self.center_ if self.centered else features
        return ScoreDistribution(features @ self._fitted() + bias, self._std(spread), self.k)

    def margins(self, chosen: Sequence[Conversation], rejected: Sequence[Conversation]) -> ScoreDistribution:
        """Returns the margin of each pair and its posterior standard deviation, √(ΔzᵀH⁻¹Δz).

        Raises:
            UsageError: If the scorer is not fitted.
            DataError: If the two lists are not of one length.
        """
        check_pairs(chosen, rejected)
        first, second = np.split(self._features([*chosen, *rejected]), [len(chosen)])
        return ScoreDistribution((first - second) @ self._fitted(), self._std(first - second), self.k)

    def save(self, folder: str | Path) -> Path:
        """Returns the file in `folder` that holds the fitted values, and what tells the model they belong to.

        Raises:
            UsageError: If the scorer is not fitted.
        """
        values = {"coef": self._fitted(), "covariance": self.covariance_, "center": self.center_}
        numbers = {"prior_precision": self.prior_precision_, "n_pairs": self.n_pairs_, "refit": self.refit}
        path = Path(folder) / FILE
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, head=self._head()[0], probe=self._features([_PROBE])[0], **values, **numbers)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, scorer: RewardScorer, folder: str | Path, **settings: Any) -> "LaplaceScorer":
        """Returns the scorer that [`LaplaceScorer.save`] wrote, on the same model.

        The features of a fixed text and the head are compared with those stored, within 5 % of their length, which
        precision and hardware explain: another model is noticed, a few more steps of training may not be.

        Args:
            scorer ([`RewardScorer`]): The model it was fitted on.
            folder (`str` or `Path`): Where it was saved.
            settings: `centered`, `aggregation`, `k` and `variance_weight`, as in [`LaplaceScorer`].

        Raises:
            DataError: If the folder holds no such file.
            ModelError: If it was fitted on another model.
        """
        path = Path(folder) / FILE
        try:
            with np.load(path) as file:
                stored = dict(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); fit a LaplaceScorer and save it there") from error
        loaded = cls(scorer, float(stored["prior_precision"]), refit=bool(stored["refit"]), **settings)
        for name, now in (("head", loaded._head()[0]), ("probe", loaded._features([_PROBE])[0])):
            then = stored[name]
            if now.shape != then.shape or linalg.norm(now - then) > _SAME_MODEL * linalg.norm(then):
                raise ModelError(f"{path} was fitted on another model (its {name} differs); fit it on this one")
        loaded.prior_precision_, loaded.n_pairs_ = float(stored["prior_precision"]), int(stored["n_pairs"])
        loaded.coef_, loaded.covariance_, loaded.center_ = stored["coef"], stored["covariance"], stored["center"]
        return loaded

    def _features(self, conversations: Sequence[Conversation]) -> Floats:
        return self.scorer.features(conversations).astype(np.float64)

    def _head(self) -> tuple[Floats, float]:
        (layer,) = last_layers(self.scorer.model)
        bias = 0.0 if layer.bias is None else float(layer.bias.item())
        weight: Floats = layer.weight[0].detach().cpu().double().numpy()
        return weight, bias

    def _fitted(self) -> Floats:
        if self.coef_ is None:
            raise UsageError("the LaplaceScorer is not fitted; call fit(chosen, rejected), or load(scorer, folder)")
        return self.coef_

    def _std(self, vectors: Floats) -> Floats:
        return np.sqrt(np.einsum("nd,nd->n", vectors @ self.covariance_, vectors).clip(min=0.0))


def precision_matrix(differences: Floats, coef: Floats, prior_precision: float) -> Floats:
    """Returns H = Σ σ'(θ·Δz) Δz Δzᵀ + λI, `(d, d)`: the Hessian of the negative log posterior.

    Args:
        differences (`(N, d)` array): Features of chosen minus those of rejected, Δz.
        coef (`(d,)` array): θ.
        prior_precision (`float`): λ.

    Example:

    ```python
    >>> precision_matrix(np.array([[2.0]]), np.array([0.0]), 0.5).tolist()
    [[1.5]]
    ```
    """
    p = special.expit(differences @ coef)
    hessian: Floats = differences.T @ (differences * (p * (1 - p))[:, None])
    hessian[np.diag_indices_from(hessian)] += prior_precision
    return hessian


def map_coefficients(differences: Floats, labels: Floats, prior_precision: float) -> Floats:
    """Returns θ that minimises −Σ [q log σ(θ·Δz) + (1 − q) log σ(−θ·Δz)] + λ|θ|²/2, `(d,)`.

    Args:
        differences (`(N, d)` array): Δz.
        labels (`(N,)` array): Share of votes for chosen, q.
        prior_precision (`float`): λ, above 0: the minimum is then one point.
    """
    n, scale = len(differences), np.abs(differences).max() or 1.0
    mode = LogisticRegression(
        C=1 / (prior_precision / scale**2), fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=200
    )
    # a pair of which a share q of the votes is for chosen is seen as won with weight q and as lost with 1 − q
    mode.fit(np.tile(differences / scale, (2, 1)), np.repeat([1, 0], n), np.concatenate([labels, 1 - labels]))
    return mode.coef_[0] / scale


def _negative_log_posterior(differences: Floats, labels: Floats, coef: Floats, prior_precision: float) -> float:
    margins = differences @ coef
    losses = labels * np.logaddexp(0, -margins) + (1 - labels) * np.logaddexp(0, margins)
    return float(losses.sum() + prior_precision * (coef @ coef) / 2)


def _best_precision(differences: Floats, labels: Floats, mode: Callable[[float], Floats], *, fixed: bool) -> float:
    """Returns λ with the largest Laplace evidence, −U(θ) + (d log λ − log|H|)/2, U the negative log posterior."""
    curvature = linalg.eigvalsh(precision_matrix(differences, mode(1.0), 0.0)) if fixed else None

    def negative_evidence(log_precision: float) -> float:
        precision = float(np.exp(log_precision))
        coef = mode(precision)
        values = linalg.eigvalsh(precision_matrix(differences, coef, 0.0)) if curvature is None else curvature
        volume = np.log(precision) - np.log(values.clip(min=0.0) + precision)
        return _negative_log_posterior(differences, labels, coef, precision) - float(volume.sum()) / 2

    bounds = tuple(np.log(_PRECISIONS))
    found = optimize.minimize_scalar(negative_evidence, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    if min(abs(found.x - bounds[0]), abs(found.x - bounds[1])) < 0.01:
        logger.warning(
            "the pairs favour no finite prior precision: taken is %.3g, the end of the range tried", np.exp(found.x)
        )
    return float(np.exp(found.x))
