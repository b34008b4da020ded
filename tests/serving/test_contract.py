"""Requests made from the OpenAPI document: no answer is a 500, each is one the document knows, none is lost."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from serving_http import running

from rmtrl import RewardScorer

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


def asked(client, n):
    """Sends about n requests of each operation, sound and unsound ones; returns the statuses."""
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    statuses = []
    for operation in (found.ok() for found in schema.get_all_operations()):
        modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        for mode in modes if operation.body else modes[:1]:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=n if operation.body else 3, deadline=None, database=None, derandomize=True,
                      phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
            def send(case):
                response = case.call()
                case.validate_response(response, checks=CHECKS)
                statuses.append(response.status_code)

            send()
    return statuses


def check(model, tokenizer, n):
    with running(RewardScorer(model, tokenizer, progress=False), wait_seconds=0) as client:
        statuses = asked(client, n)
        assert client.post("/score", json={"conversations": ["red"]}).status_code == 200
        figures = client.get("/metrics").text
    assert statuses.count(200) > len(statuses) / 10 and statuses.count(422) > len(statuses) / 10
    assert "rmtrl_waiting 0.0" in figures
    return len(statuses)


@pytest.mark.integration
def test_hundreds_of_generated_requests(model, tokenizer):
    assert check(model, tokenizer, 20) >= 300


@pytest.mark.slow
def test_ten_thousand_generated_requests(model, tokenizer):
    assert check(model, tokenizer, 560) >= 10_000
