"""What the errors tell a caller: whether another try could succeed."""

from __future__ import annotations

import inspect

from airflow_provider_talon_cdp import exceptions

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
