"""The Bayesian last layer, against brute force, other implementations and its own Gaussian."""

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from rmtrl import RewardScorer
from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.reward.heads import Head, install_head
from rmtrl.reward.laplace import LaplaceScorer, map_coefficients, precision_matrix


class Features(RewardScorer):
    """A model whose features are given: conversation i is row i, and the head is linear."""

    def __init__(self, features, coef, bias=None):
        self.table, self.head = np.asarray(features, dtype=np.float32), Head()
        self.model = torch.nn.Module()
        self.model.base_model_prefix = "model"
        self.model.score = torch.nn.Linear(len(coef), 1, bias=bias is not None)
        with torch.no_grad():
            self.model.score.weight.copy_(torch.as_tensor(coef)[None])
            if bias is not None:
                self.model.score.bias.fill_(bias)

    def features(self, conversations):
        probe = [i for i in conversations if isinstance(i, str)]
        return self.table[[0 if probe else int(i) for i in conversations]]


@pytest.fixture
def problem():
    """60 pairs in 5 dimensions, whose features share a large constant part; soft labels."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(120, 5)) + [3.0, 0, 0, -2.0, 1.0]
    coef = generator.normal(size=5).astype(np.float32)
    scorer = Features(features, coef, bias=0.5)
    differences = scorer.table[:60].astype(np.float64) - scorer.table[60:]
    labels = generator.binomial(4, 1 / (1 + np.exp(-differences @ coef))) / 4
    return scorer, differences, labels, range(60), range(60, 120)


def negative_log_posterior(differences, labels, precision):
    differences, labels = torch.tensor(differences), torch.tensor(labels)

    def loss(coef):
        margins = differences @ coef
        logs = torch.nn.functional.logsigmoid
        return -(labels * logs(margins) + (1 - labels) * logs(-margins)).sum() + precision * (coef @ coef) / 2

    return loss


def test_one_pair_in_one_dimension_by_hand():
    # Δz = 2, θ = 0: σ' = ¼, H = 4/4 + ½ = 1.5
    laplace = LaplaceScorer(Features([[3.0], [1.0]], np.zeros(1, np.float32)), prior_precision=0.5).fit([0], [1])
    np.testing.assert_allclose(laplace.covariance_, [[1 / 1.5]])
    np.testing.assert_allclose(laplace.margins([0], [1]).std, [2 / 1.5**0.5])
    np.testing.assert_allclose(laplace.distribution([0, 1]).std, [3 / 1.5**0.5, 1 / 1.5**0.5])
    np.testing.assert_allclose(laplace.center_, [2.0])
    laplace.centered = True
    np.testing.assert_allclose(laplace.distribution([0, 1]).std, [1 / 1.5**0.5] * 2)
    assert laplace.n_pairs_ == 1


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("precision", [0.3, 20.0])
def test_posterior_is_that_of_brute_force(problem, refit, precision):
    scorer, differences, labels, chosen, rejected = problem
    laplace = LaplaceScorer(scorer, precision, refit=refit).fit(chosen, rejected, labels)
    loss = negative_log_posterior(differences, labels, precision)
    if refit:

        def value_and_gradient(coef):
            at = torch.tensor(coef, requires_grad=True)
            value = loss(at)
            (gradient,) = torch.autograd.grad(value, at)
            return value.item(), gradient.numpy()

        mode = optimize.minimize(value_and_gradient, np.ones(5), jac=True, method="L-BFGS-B",
                                 options={"ftol": 1e-15, "gtol": 1e-10}).x  # fmt: skip
        np.testing.assert_allclose(laplace.coef_, mode, atol=1e-6)
    else:
        np.testing.assert_allclose(laplace.coef_, scorer.model.score.weight[0].detach().double())
    hessian = torch.autograd.functional.hessian(loss, torch.tensor(laplace.coef_)).numpy()
    np.testing.assert_allclose(precision_matrix(differences, laplace.coef_, precision), hessian, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(laplace.covariance_, np.linalg.inv(hessian), rtol=1e-6, atol=1e-9)
    std = [np.sqrt(dz @ np.linalg.solve(hessian, dz)) for dz in differences]
    np.testing.assert_allclose(laplace.margins(chosen, rejected).std, std, rtol=1e-6)


def test_the_refitted_mode_is_that_of_sklearn(problem):
    _, differences, labels, *_ = problem
    both = np.concatenate([differences, differences])
    sklearn = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-10, max_iter=10_000)
    sklearn.fit(both, np.repeat([1, 0], 60), sample_weight=np.concatenate([labels, 1 - labels]) + 1e-300)
    np.testing.assert_allclose(map_coefficients(differences, labels, 0.7), sklearn.coef_[0], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_refitted_mode_has_no_gradient_also_for_odd_scales(problem, scale):
    _, differences, labels, *_ = problem
    for q in (labels, np.ones(60)):
        coef = map_coefficients(differences * scale, q, 0.01)
        at = torch.tensor(coef, requires_grad=True)
        negative_log_posterior(differences * scale, q, 0.01)(at).backward()
        assert np.abs(at.grad.numpy()).max() < 1e-7 * scale


def test_margin_spread_is_that_of_draws_from_the_gaussian(problem):
    scorer, differences, _, chosen, rejected = problem
    laplace = LaplaceScorer(scorer).fit(chosen, rejected)
    draws = np.random.default_rng(1).multivariate_normal(laplace.coef_, laplace.covariance_, size=20_000)
    margins = laplace.margins(chosen, rejected)
    np.testing.assert_allclose(margins.std, (draws @ differences.T).std(axis=0), rtol=0.025)  # 5 standard errors
    np.testing.assert_allclose(margins.mean, (draws @ differences.T).mean(axis=0), atol=5 * margins.std.max() / 141)


def test_the_probability_of_the_spread_is_the_mean_over_draws(problem):
    scorer, differences, _, chosen, rejected = problem
    laplace = LaplaceScorer(scorer, 0.3).fit(chosen, rejected)
    draws = np.random.default_rng(1).multivariate_normal(laplace.coef_, laplace.covariance_, size=20_000)
    mean = (1 / (1 + np.exp(-draws @ differences.T))).mean(axis=0)
    margins = laplace.margins(chosen, rejected)
    probit = 1 / (1 + np.exp(-margins.mean / np.sqrt(1 + np.pi * margins.std**2 / 8)))  # MacKay 1992
    np.testing.assert_allclose(probit, mean, atol=0.03)


def test_margins_are_antisymmetric(problem):
    scorer, _, _, chosen, rejected = problem
    laplace = LaplaceScorer(scorer).fit(chosen, rejected)
    forth, back = laplace.margins(chosen, rejected), laplace.margins(rejected, chosen)
    np.testing.assert_allclose(forth.mean, -back.mean)
    np.testing.assert_allclose(forth.std, back.std)


def test_the_order_of_pairs_and_of_a_pairs_sides_does_not_change_the_posterior(problem):
    scorer, _, labels, chosen, rejected = problem
    one = LaplaceScorer(scorer, refit=True).fit(chosen, rejected, labels)
    other = LaplaceScorer(scorer, refit=True).fit(rejected[::-1], chosen[::-1], 1 - labels[::-1])
    np.testing.assert_allclose(one.covariance_, other.covariance_, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(one.coef_, other.coef_, atol=1e-8)


def test_more_pairs_leave_less_doubt(problem):
    scorer, _, _, chosen, rejected = problem
    few, many = (LaplaceScorer(scorer).fit(chosen[:n], rejected[:n]).margins(chosen, rejected).std for n in (10, 60))
    assert (many < few).all()


def test_the_best_prior_precision_has_the_evidence_of_brute_force(problem):
    scorer, differences, labels, chosen, rejected = problem
    coef = scorer.model.score.weight[0].detach().double().numpy()

    def evidence(precision, mode):
        hessian = precision_matrix(differences, mode, precision)
        fit = -negative_log_posterior(differences, labels, precision)(torch.tensor(mode)).item()
        return fit + (len(mode) * np.log(precision) - np.linalg.slogdet(hessian)[1]) / 2

    for refit in (False, True):
        laplace = LaplaceScorer(scorer, "auto", refit=refit).fit(chosen, rejected, labels)
        grid = np.exp(np.linspace(np.log(1e-4), np.log(1e4), 400))
        values = [evidence(p, map_coefficients(differences, labels, p) if refit else coef) for p in grid]
        best = grid[int(np.argmax(values))]
        assert laplace.prior_precision_ == pytest.approx(best, rel=0.03)
        if not refit:  # MacKay's fixed point: λ|θ|² is the number of well-determined parameters
            curvature = np.linalg.eigvalsh(precision_matrix(differences, coef, 0.0))
            determined = (curvature / (curvature + laplace.prior_precision_)).sum()
            assert laplace.prior_precision_ * coef @ coef == pytest.approx(determined, rel=1e-3)


def test_pairs_that_say_nothing_are_told(problem, caplog):
    scorer, _, _, chosen, rejected = problem
    LaplaceScorer(scorer, "auto", refit=True).fit(chosen, rejected, np.full(60, 0.5))
    assert "no finite prior precision" in caplog.text
    caplog.clear()
    LaplaceScorer(scorer, "auto").fit(chosen, rejected)
    assert not caplog.records


# With a model


@pytest.fixture
def texts(rows):
    return tuple([row["prompt"] + row[side] for row in rows(30)] for side in ("chosen", "rejected"))


@pytest.fixture
def scorer(model, tokenizer):
    return RewardScorer(model, tokenizer)


def test_scores_are_those_of_the_model(scorer, texts):
    laplace = LaplaceScorer(scorer).fit(*texts)
    np.testing.assert_allclose(laplace.score(texts[0]), scorer.score(texts[0]), atol=1e-5)
    margins = laplace.margins(*texts)
    np.testing.assert_allclose(margins.mean, scorer.score(texts[0]) - scorer.score(texts[1]), atol=1e-5)
    lower = LaplaceScorer(scorer, aggregation="lower", k=2.0).fit(*texts)
    np.testing.assert_allclose(lower.score(texts[0]), laplace.distribution(texts[0]).mean - 2
                               * laplace.distribution(texts[0]).std, atol=1e-5)  # fmt: skip
    assert laplace.holds(["red", "red " * 300]).tolist() == [True, False]


def test_an_mlp_head_has_the_features_before_its_last_layer(model, tokenizer, texts):
    install_head(model, Head(kind="mlp"))
    scorer = RewardScorer(model, tokenizer, head=Head(kind="mlp"))
    laplace = LaplaceScorer(scorer).fit(*texts)
    np.testing.assert_allclose(laplace.score(texts[0]), scorer.score(texts[0]), atol=1e-5)


def test_saved_and_loaded_is_the_same(tmp_path, scorer, texts):
    laplace = LaplaceScorer(scorer, "auto", refit=True).fit(*texts)
    laplace.save(tmp_path / "new")
    loaded = LaplaceScorer.load(scorer, tmp_path / "new", aggregation="lower")
    np.testing.assert_allclose(loaded.distribution(texts[0]).std, laplace.distribution(texts[0]).std)
    np.testing.assert_allclose(loaded.distribution(texts[0]).mean, laplace.distribution(texts[0]).mean)
    assert (loaded.n_pairs_, loaded.prior_precision_) == (30, laplace.prior_precision_)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["laplace.npz"]


def test_another_model_is_refused(tmp_path, scorer, texts, new_model, tokenizer):
    LaplaceScorer(scorer).fit(*texts).save(tmp_path)
    half = new_model().bfloat16()
    LaplaceScorer.load(RewardScorer(half, tokenizer), tmp_path)  # the same weights, rounded
    head, body = new_model(), new_model()
    torch.nn.init.normal_(head.score.weight)
    torch.nn.init.normal_(body.model.layers[1].mlp.down_proj.weight)
    for other, what in ((head, "head"), (body, "probe")):
        with pytest.raises(ModelError, match=f"another model .its {what}"):
            LaplaceScorer.load(RewardScorer(other, tokenizer), tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        LaplaceScorer.load(scorer, tmp_path / "nowhere")


def test_what_cannot_be_used_is_a_clear_error(tmp_path, scorer, texts, new_model, tokenizer):
    with pytest.raises(UsageError, match="not fitted"):
        LaplaceScorer(scorer).score(texts[0])
    with pytest.raises(UsageError, match="not fitted"):
        LaplaceScorer(scorer).save(tmp_path)
    for precision in (0.0, -1.0, float("nan"), float("inf"), "best"):
        with pytest.raises(UsageError, match="prior_precision"):
            LaplaceScorer(scorer, precision)
    with pytest.raises(UsageError, match="needs members"):
        LaplaceScorer(scorer, aggregation="min")
    with pytest.raises(DataError, match="30 chosen and 2 rejected"):
        LaplaceScorer(scorer).fit(texts[0], texts[1][:2])
    with pytest.raises(DataError, match="no pairs"):
        LaplaceScorer(scorer).fit([], [])
    for labels in ([1.0], [2.0] * 30, [float("nan")] * 30):
        with pytest.raises(DataError, match="labels"):
            LaplaceScorer(scorer).fit(*texts, labels)
    heads = new_model()
    install_head(heads, Head(members=2))
    with pytest.raises(ModelError, match="2 outputs"):
        LaplaceScorer(RewardScorer(heads, tokenizer, head=Head(members=2)))
