"""The OpenAPI document and the emulator say the same: a fuzzer finds no answer that is not documented."""

import json

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from airflow_provider_talon_cdp.emulator import Emulator, admin
from airflow_provider_talon_cdp.emulator.service import DEFAULT_DEPLOYMENT_HOST, EmulatorSettings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


KEY = {"Authorization": "ApiKey-v1 local-key-1234567890"}


@pytest.fixture(scope="module")
def fuzzed():
    """An emulator with an audience that a fuzzer will hit: "0" outside, 1 inside."""
    with Emulator() as emulator:
        emulator.create_audience("0", "Known")
        yield emulator


api = schemathesis.openapi.from_dict(
    json.loads(admin.openapi(EmulatorSettings(), "http://127.0.0.1").body),
    config=schemathesis.Config(seed=1),
)


OPERATIONS = [result.ok() for result in api.get_all_operations()]


# Not api.parametrize(): all its tests have one node ID, of which pytest-xdist runs one.
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda each: each.value)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
@settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_no_request_gets_an_answer_that_is_not_documented(operation, mode, data, fuzzed):
    case = data.draw(operation.as_strategy(generation_mode=mode))
    case.call_and_validate(fuzzed.url, headers=KEY, checks=CHECKS)


def test_the_fuzzer_reached_every_operation_and_most_statuses(fuzzed):
    """Runs after the fuzzer: without this, a fuzzer that is refused at the door would look like a success."""
    counters = fuzzed.state()["requests"]
    documented = {operation.definition.raw["operationId"] for operation in OPERATIONS}
    assert len(documented) == 7
    assert documented <= set(counters["by_operation"])
    assert {"200", "201", "204", "400", "401", "404", "409"} <= set(counters["by_status"])


def test_the_deployments_error_has_the_documented_shape():
    call = api["/cdp/customer_profile/{customerProfileId}"]["PUT"]
    with Emulator(attributes={"Tier": "string"}) as emulator:
        headers = {"customer-data-platform-name": "x", "destination-hostname": DEFAULT_DEPLOYMENT_HOST}
        body = {"attributes": {"unknown": 1}}
        case = call.Case(path_parameters={"customerProfileId": "p"}, headers=headers, body=body)
        answer = case.call(emulator.url, headers=KEY)
        assert answer.status_code == 400
        assert set(answer.json()) == {"message", "errors"}
        case.validate_response(answer, checks=[response_schema_conformance, status_code_conformance])


@pytest.mark.parametrize(
    ("spelling", "there"), [("plural", "customer_profiles"), ("singular", "customer_profile")]
)
def test_the_document_has_the_paths_of_this_emulator(spelling, there):
    with Emulator(multi_profile_path=spelling, deployment_host=None) as emulator:
        served = requests.get(f"{emulator.url}/openapi.json", timeout=5).json()
        assert {path for path in served["paths"] if path.startswith("/cdp/v2/")} == {
            f"/cdp/v2/{there}/audiences"
        }
        assert served["servers"] == [{"url": emulator.url}]
        assert served["info"]["title"]
