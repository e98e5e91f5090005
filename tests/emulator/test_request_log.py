"""The log is bounded, its counters are not."""

from dataclasses import replace

from airflow_provider_talon_cdp.emulator.request_log import KEPT, LoggedRequest, RequestLog

REQUEST = LoggedRequest("t", "PUT", "/p", "", "update_profile", 200, "u", 0, None, None)


def test_the_last_requests_are_kept_and_all_are_counted():
    log = RequestLog()
    for number in range(KEPT + 5):
        log.add(replace(REQUEST, changes=number))
    log.add(replace(REQUEST, status=None, operation=""))
    assert (len(log.last()), log.last()[0].changes) == (KEPT, 6)
    assert log.counters() == {
        "total": KEPT + 6,
        "by_status": {"200": KEPT + 5, "none": 1},
        "by_operation": {"none": 1, "update_profile": KEPT + 5},
    }
    log.clear()
    assert (log.last(), log.counters()["total"]) == ([], 0)
