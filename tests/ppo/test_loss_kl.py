"""KL estimates and the coefficient that follows them."""

import json

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from rmtrl.errors import UsageError
from rmtrl.ppo.loss import AdaptiveKLController, FixedKLController, kl_terms


def test_terms_by_hand():
    logprobs, ref_logprobs = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.0]])
    assert kl_terms(logprobs, ref_logprobs).tolist() == [[2.0, -1.0]]
    torch.testing.assert_close(kl_terms(logprobs, ref_logprobs, "k3"), torch.tensor([[1.1353353, 0.7182818]]))


def test_both_estimators_have_the_divergence_as_mean():
    torch.manual_seed(0)
    policy, ref = Categorical(logits=torch.randn(20).double()), Categorical(logits=torch.randn(20).double())
    for estimator in ("k1", "k3"):
        mean = (policy.probs * kl_terms(policy.logits, ref.logits, estimator)).sum()
        torch.testing.assert_close(mean, kl_divergence(policy, ref))


def test_k3_is_never_below_0_and_exact_near_it():
    log_ratio = torch.tensor([-5.0, -1e-4, 0.0, 1e-4, 5.0])
    terms = kl_terms(log_ratio, torch.zeros(5), "k3")
    assert (terms >= 0).all() and terms[2] == 0
    torch.testing.assert_close(terms[[1, 3]], torch.full((2,), 5e-9), rtol=1e-2, atol=0)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(UsageError, match="'k2'; wanted 'k1' or 'k3'"):
        kl_terms(torch.zeros(1, 1), torch.zeros(1, 1), "k2")


def test_adaptive_coefficient_is_that_of_the_paper():
    controller = AdaptiveKLController(0.15, target=6, horizon=10_000)
    controller.update(12.0, 512)
    assert controller.kl_coef == pytest.approx(0.151536, abs=1e-9)
    controller = AdaptiveKLController(0.15, target=6, horizon=10_000)
    controller.update(6.6, 1000)  # an error of 0.1, not clipped
    assert controller.kl_coef == pytest.approx(0.15 * 1.01)


def test_adaptive_coefficient_rises_above_the_target_and_falls_below():
    controller = AdaptiveKLController(0.1, target=5, horizon=100)
    for kl, sign in [(5.0, 0), (5.5, 1), (50.0, 1), (4.5, -1), (-1.0, -1)]:
        before = controller.kl_coef
        controller.update(kl, 10)
        assert (controller.kl_coef > before) - (controller.kl_coef < before) == sign
        assert controller.kl_coef > 0


def test_a_resumed_controller_goes_on_as_if_it_had_not_stopped():
    whole, first, second = (AdaptiveKLController(0.1, target=5, horizon=100) for _ in range(3))
    first.update(9.0, 10)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.update(2.0, 10)
    whole.update(9.0, 10)
    whole.update(2.0, 10)
    assert second.kl_coef == whole.kl_coef != 0.1


def test_a_fixed_coefficient_stays():
    controller = FixedKLController(0.05)
    controller.update(100.0, 10**6)
    controller.load_state_dict(json.loads(json.dumps(FixedKLController(0.07).state_dict())))
    assert controller.kl_coef == 0.05 and FixedKLController(0).kl_coef == 0


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("kl_coef -0.1", lambda: FixedKLController(-0.1)),
        ("kl_coef nan", lambda: FixedKLController(float("nan"))),
        ("kl_coef 0", lambda: AdaptiveKLController(0, 6, 100)),
        ("target 0", lambda: AdaptiveKLController(0.1, 0, 100)),
        ("horizon -1", lambda: AdaptiveKLController(0.1, 6, -1)),
        ("a divergence of nan", lambda: AdaptiveKLController(0.1, 6, 100).update(float("nan"), 1)),
        ("500 episodes", lambda: AdaptiveKLController(0.1, 6, 100).update(1.0, 500)),
        ("{'kl_coef': -1}", lambda: AdaptiveKLController(0.1, 6, 100).load_state_dict({"kl_coef": -1})),
        ("{}", lambda: AdaptiveKLController(0.1, 6, 100).load_state_dict({})),
    ],
)
def test_values_out_of_range_are_refused(name, make):
    with pytest.raises(UsageError, match=f"got {name}"):
        make()
