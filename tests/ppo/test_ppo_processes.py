"""Two processes are quiet, end together, and resume as the same run."""

import ppo_runs
import pytest

pytestmark = pytest.mark.integration

RUN = dict(eval_strategy="steps", eval_steps=2, max_steps=4, learning_rate=1e-3, num_generations=2)


def test_two_processes_are_quiet(tmp_path):
    codes, _, printed = ppo_runs.run(tmp_path / "two", n_processes=2, folder=str(tmp_path / "out"), max_steps=1,
                                     gradient_accumulation_steps=2)  # fmt: skip
    assert codes == [0, 0], printed
    assert not any("find_unused" in text or "Traceback" in text or "UserWarning" in text for text in printed)


@pytest.mark.parametrize("normalize_rewards", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_reward_that_fails_on_one_process_ends_both(tmp_path, normalize_rewards):
    codes, _, printed = ppo_runs.run(
        tmp_path / "two", n_processes=2, timeout=60, folder=str(tmp_path / "out"), gradient_accumulation_steps=2,
        reward=ppo_runs.reward_that_fails_on_one_process, normalize_rewards=normalize_rewards,
    )  # fmt: skip
    assert codes == [1, 1]
    assert "RewardError: the reward 'reward_that_fails_on_one_process' failed for" in printed[1]
    assert "ZeroDivisionError: no such reward" in printed[1]


def test_the_first_of_two_processes_asks_for_verdicts_and_both_know_them(tmp_path):
    codes, results, printed = ppo_runs.run(
        tmp_path / "two", ppo_runs.watched, n_processes=2, folder=str(tmp_path / "out"), max_steps=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    assert codes == [0, 0], printed
    first, second = results
    assert first["asked"] > second["asked"] == 0
    assert first["evidence"] == second["evidence"]
    assert first["evidence"]["n_labels"] == first["evidence"]["counts"][2] == first["asked"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_resume_as_the_same_run(tmp_path, kind):
    settings = dict(
        RUN, kind=kind, n_processes=2, gradient_accumulation_steps=2, save_strategy="steps", save_steps=2,
        logging_steps=3, normalize_rewards=True, kl_target=2.0, reward=ppo_runs.noisy_reward,
    )  # fmt: skip
    whole = ppo_runs.result(tmp_path / "whole", folder=str(tmp_path / "a"), **settings)
    codes, _, printed = ppo_runs.run(tmp_path / "killed", folder=str(tmp_path / "b"), kill_at_step=3, **settings)
    assert codes == [-9, -9], printed
    resumed = ppo_runs.result(tmp_path / "resumed", folder=str(tmp_path / "b"), resume=True, **settings)
    assert resumed["world_size"] == 2
    difference = ppo_runs.largest_difference(whole, resumed)
    print(f"{kind}: {difference}")
    assert difference <= 1e-6
