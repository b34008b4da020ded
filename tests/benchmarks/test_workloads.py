from workloads import n_tokens

from rmtrl.reward.batching import Costs, plan_jobs

FREE = Costs(cell=0.0, call=0.0, most_tokens=1 << 20)


def test_tokens_are_counted_with_their_padding():
    sequences = [[1] * 9 + [2] * 3, [1] * 9 + [3] * 5, [7] * 4]
    jobs = plan_jobs(sequences, pad_token_id=0, costs=FREE, share=True)
    assert n_tokens(jobs, sequences, FREE) == (9 + 3 + 5) + 4
    jobs = plan_jobs(sequences, pad_token_id=0, costs=FREE, share=False)
    assert n_tokens(jobs, sequences, FREE) == 12 + 14 + 4
