"""Adding a million members to an audience: us, as users run us, beside the alternatives.

All of them read the same SQLite table with ``fetchmany`` and send requests of a thousand members each.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any
from urllib.parse import urlsplit

from harness import Bench, Contender, Result
from job import BATCH, Job, talon_connection
from report import Section, Target, results_table

PATH = "/cdp/v2/customer_profiles/audiences"
HEADERS = {
    "Authorization": "ApiKey-v1 local-key-1234567890",
    "customer-data-platform-name": "bench",
    "destination-hostname": "demo.europe-west1.talon.one",
    "Content-Type": "application/json",
}


def body(ids: list[str]) -> dict[str, Any]:
    """The documented body of a multi-profile call."""
    return {"data": [{"customerProfileId": each, "adds": ["vip"], "deletes": []} for each in ids]}


def ours(job: Job, in_flight: int = 64) -> None:
    """This provider's operator, with its report and progress."""
    talon_connection(job)
    from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

    SqlToTalonAudienceOperator(
        task_id="bench",
        sql="SELECT profile_id FROM customers",
        sql_conn_id="warehouse",
        audience_id="vip",
        mode="add",
        in_flight=in_flight,
    ).execute({})


def aiohttp_64(job: Job) -> None:
    """Written by hand: aiohttp, orjson, 64 requests in flight."""
    import aiohttp
    import orjson

    in_flight = asyncio.Semaphore(64)

    async def send(session: aiohttp.ClientSession, ids: list[str]) -> None:
        async with session.put(job.url + PATH, data=orjson.dumps(body(ids)), headers=HEADERS) as answer:
            assert answer.status == 204
        in_flight.release()

    async def main() -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session,
            asyncio.TaskGroup() as group,
        ):
            for ids in job.batches():
                await in_flight.acquire()
                group.create_task(send(session, ids))

    asyncio.run(main())


def write_requests(warehouse: Path) -> None:
    """Encode the requests of all customers into a file, for ``encoded_before``."""
    requests = []
    for ids in Job("", str(warehouse), "").batches():
        data = json.dumps(body(ids)).encode()
        head = f"PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        requests.append(head.encode() + data)
    _requests_file(warehouse).write_bytes(b"\0".join(requests))


def encoded_before(job: Job) -> None:
    """Nothing but the network: 64 connections, and requests that were encoded before."""
    requests = iter(_requests_file(Path(job.warehouse)).read_bytes().split(b"\0"))
    address = urlsplit(job.url)

    async def send() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for request in requests:
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.close()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(send())

    asyncio.run(main())


def _requests_file(warehouse: Path) -> Path:
    return warehouse.with_suffix(".requests")


def session_loop(job: Job) -> None:
    """One ``requests.Session``, one request after the other."""
    import requests

    with requests.Session() as session:
        for ids in job.batches():
            assert session.put(job.url + PATH, json=body(ids), headers=HEADERS).status_code == 204


def session_threads(job: Job) -> None:
    """A ``requests.Session`` in each of 16 threads."""
    import requests

    own = local()

    def send(ids: list[str]) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
        assert own.session.put(job.url + PATH, json=body(ids), headers=HEADERS).status_code == 204

    in_threads(send, job.batches())


def in_threads(send: Any, batches: Iterator[Any], threads: int = 16) -> None:
    """Send in threads, and read no more than a little ahead of them."""
    with ThreadPoolExecutor(threads) as pool:
        sending = [pool.submit(send, each) for each in islice(batches, 2 * threads)]
        while sending:
            sending.pop(0).result()
            sending.extend(pool.submit(send, each) for each in islice(batches, 1))


def http_hook(job: Job) -> None:
    """Airflow's ``HttpHook.run``, once for each request."""
    os.environ["AIRFLOW_CONN_TALON"] = json.dumps({"conn_type": "http", "host": job.url})
    from airflow.providers.http.hooks.http import HttpHook

    hook = HttpHook(method="PUT", http_conn_id="talon")
    for ids in job.batches():
        assert hook.run(PATH, json=body(ids), headers=HEADERS).status_code == 204


def vendor_sdk(job: Job) -> None:
    """The vendor's SDK, its call for a thousand members of the Integration API."""
    import talon_one
    from talon_one.models import CustomerProfileAudienceRequest, CustomerProfileAudienceRequestItem

    configuration = talon_one.Configuration(host=job.url, api_key={"api_key_v1": "local-key-1234567890"})
    with talon_one.ApiClient(configuration) as client:
        api = talon_one.IntegrationApi(client)
        for ids in job.batches():
            items = [
                CustomerProfileAudienceRequestItem(action="add", profileIntegrationId=each, audienceId=1)
                for each in ids
            ]
            api.update_customer_profile_audiences(CustomerProfileAudienceRequest(data=items))


def dlt_destination(job: Job) -> None:
    """A custom destination of dlt, with files small enough for all of its 20 load workers."""
    os.environ |= {
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "RUNTIME__LOG_LEVEL": "CRITICAL",
        "DLT_PROJECT_DIR": job.folder,
        "DATA_WRITER__FILE_MAX_ITEMS": "20000",
    }
    import dlt
    import requests

    own = local()

    @dlt.destination(batch_size=1000, name="talon", naming_convention="direct")  # type: ignore[untyped-decorator]
    def talon(items: list[dict[str, str]], _table: Any) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
        ids = [item["profile_id"] for item in items]
        assert own.session.put(job.url + PATH, json=body(ids), headers=HEADERS).status_code == 204

    def customers() -> Iterator[list[dict[str, str]]]:
        for ids in job.batches():
            yield [{"profile_id": each} for each in ids]

    pipeline = dlt.pipeline("bench", destination=talon, pipelines_dir=job.folder)
    pipeline.run(customers(), table_name="customers")


CONTENDERS = {
    "ours": ours,
    "64 raw connections, encoded before": encoded_before,
    "aiohttp + orjson, 64 in flight, by hand": aiohttp_64,
    "requests.Session, 16 threads": session_threads,
    "requests.Session, loop": session_loop,
    "HttpHook.run, loop": http_hook,
    "talon-one-sdk, loop": vendor_sdk,
    "dlt, custom destination": dlt_destination,
}
NEEDS = {vendor_sdk: "talon_one", dlt_destination: "dlt"}


def run(bench: Bench) -> Section:
    """Measure all of them at 50 ms and at 0 ms."""
    size = bench.rows(1_000_000)
    for rows in (size, 2 * BATCH):
        write_requests(bench.warehouse(rows))
    at = {}
    for service_time in (0.05, 0.0):
        contenders = [
            Contender(
                label=label,
                function=function,
                size=size,
                requests=math.ceil(size / BATCH),
                stub=("--service-time", str(service_time)),
                needs=NEEDS.get(function),
            )
            for label, function in CONTENDERS.items()
        ]
        at[service_time] = bench.medians(contenders)
    parts = [__doc__.partition("\n\n")[2].strip()]
    parts += [f"{seconds * 1000:g} ms service time:\n\n{results_table(at[seconds])}" for seconds in at]
    parts.append(f"The stub alone, asked by a raw client: {bench.capacity() * BATCH:,.0f} members a second.")
    return Section("Members: add a million to an audience", "\n\n".join(parts), _targets(at[0.05], at[0.0]))


WHY_NOT_FASTER = (
    "the interpreter is busy from the first row to the last. By py-spy, SQLite's cursor has it for 36 % of "
    "the time, our checks of IDs and the search for repetitions, which the others do without, for 28 %, "
    "aiohttp for 17 %, and writing bodies for 7 %."
)

WHY_NOT_LESS_CPU = (
    "by perf, taking and releasing locks, which SQLite and the interpreter do several times a row, has a "
    "fifth to a quarter of our CPU time on a Xeon, as a process with a second thread needs atomic "
    "operations for it, and that of the other has one thread. Without a thread that reads, a slow warehouse "
    "would stop the requests in flight. In five runs on two machines, our share was 1/10.2 to 1/14.7 of the "
    "SDK's, and 0.51 to 0.79 of aiohttp's."
)


def _targets(with_service_time: dict[str, Result], without: dict[str, Result]) -> list[Target]:
    hand = "aiohttp + orjson, 64 in flight, by hand"
    raw = "64 raw connections, encoded before"
    targets = []
    for label, least in ((hand, 1.5), (raw, 0.9)):
        faster = with_service_time[label].seconds / with_service_time["ours"].seconds
        targets.append(
            Target(
                "add 1,000,000, 50 ms",
                f">= {least} x {label}",
                f"{faster:.2f} x",
                faster >= least,
                WHY_NOT_FASTER,
            )
        )
    for label, most, wanted in ((hand, 0.7, "0.7"), ("talon-one-sdk, loop", 1 / 12, "1/12")):
        if label in without:
            share = without["ours"].cpu / without[label].cpu
            measured = f"{share:.2f} x" if most > 0.1 else f"1/{1 / share:.1f}"
            targets.append(
                Target(
                    "add 1,000,000, 0 ms, CPU",
                    f"<= {wanted} x {label}",
                    measured,
                    share <= most,
                    WHY_NOT_LESS_CPU,
                )
            )
    return targets
