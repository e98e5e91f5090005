"""What the errors tell a caller: whether another try could succeed."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from airflow_provider_talon_cdp import exceptions
from airflow_provider_talon_cdp.sync.report import Report

ERRORS = {
    name: each
    for name, each in vars(exceptions).items()
    if inspect.isclass(each) and issubclass(each, exceptions.TalonCdpError)
}


def test_only_what_may_pass_is_worth_another_try():
    assert {name for name, each in ERRORS.items() if each.retryable} == {
        "LedgerBusyError",
        "LedgerUnavailableError",
        "SpoolError",
        "StoppedError",
        "TransientError",
    }


def test_every_error_documents_what_another_try_would_do():
    base = {"TalonCdpError", "RequestError"}
    silent = {
        name
        for name, each in ERRORS.items()
        if name not in base and not any(word in each.__doc__ for word in ("nother try", "again"))
    }
    assert silent == set()


def test_an_error_of_another_class_keeps_what_the_answer_said():
    error = exceptions.RejectedError("no", method="PUT", path="/x", status=400, request_uuid="u-1")
    error.body, error.retry_after, error.repeated = "body", 7.0, True
    fatal = error.become(exceptions.FatalError, "stop")
    assert isinstance(fatal, exceptions.FatalError)
    assert str(fatal) == "stop"
    assert (fatal.method, fatal.path, fatal.status, fatal.request_uuid) == ("PUT", "/x", 400, "u-1")
    assert (fatal.body, fatal.retry_after, fatal.repeated) == ("body", 7.0, True)


def test_an_explanation_is_a_line_of_its_own():
    error = exceptions.RequestError("What happened.", method="PUT", path="/x")
    error.explain("What to do.")
    assert str(error) == "What happened.\nWhat to do."


class FailError(Exception):
    """In place of Airflow's class."""


ARGUMENTS = {
    "RejectedRecordsError": {"report": Report()},
    "GuardError": {"allow": "max_removals=5"},
}


def error_of(kind):
    if not issubclass(kind, exceptions.RequestError):
        return kind("What happened.", **ARGUMENTS.get(kind.__name__, {}))
    blames = (exceptions.Blame("/attributes/Tier", "unknown", "no such attribute"),)
    error = kind("What happened.", method="PUT", path="/x", status=400, request_uuid="u-1", blames=blames)
    error.body, error.retry_after, error.repeated, error.is_unclear = "{}", 7.0, True, True
    error.explain("What to do.")
    return error


@pytest.mark.parametrize("ends_retries", [False, True])
@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_an_error_survives_the_way_from_another_process(kind, way, ends_retries):
    """A process pool hangs if it cannot read the error of its worker."""
    error = error_of(kind)
    if ends_retries:
        error = exceptions.also_of(FailError, error)
    found = way(error)
    assert found is not error
    assert type(found) is type(error)
    assert isinstance(found, FailError) == ends_retries
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_an_error_that_is_also_of_another_class_keeps_its_name():
    failing = exceptions.also_of(FailError, exceptions.GuardError("too many", "max_removals=5"))
    assert isinstance(failing, exceptions.GuardError)
    assert (type(failing).__name__, type(failing).__module__) == ("GuardError", exceptions.__name__)
