"""BigQuery's REST API on loopback, over DuckDB: queries in BigQuery's SQL, rows in its JSON, in pages."""

from __future__ import annotations

import base64
import json
import re
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import duckdb
import sqlglot

PAGE = 20_000
_TYPES = {
    "VARCHAR": "STRING",
    "BIGINT": "INTEGER",
    "INTEGER": "INTEGER",
    "HUGEINT": "INTEGER",
    "DOUBLE": "FLOAT",
    "BOOLEAN": "BOOLEAN",
    "DATE": "DATE",
    "TIMESTAMP": "DATETIME",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMP",
    "JSON": "JSON",
    "BLOB": "BYTES",
}


def _field(name, kind):
    if kind.id == "list":
        return _field(name, kind.children[0][1]) | {"mode": "REPEATED"}
    if kind.id == "struct":
        fields = [_field(*child) for child in kind.children]
        return {"name": name, "type": "RECORD", "mode": "NULLABLE", "fields": fields}
    text = str(kind)
    return {
        "name": name,
        "mode": "NULLABLE",
        "type": "NUMERIC" if text.startswith("DECIMAL") else _TYPES.get(text, "STRING"),
    }


def _cell(value):
    match value:
        case None:
            return {"v": None}
        case bool():
            return {"v": str(value).lower()}
        case list():
            return {"v": [_cell(each) for each in value]}
        case dict():
            return {"v": {"f": [_cell(each) for each in value.values()]}}
        case bytes():
            return {"v": base64.b64encode(value).decode()}
        case datetime() if value.tzinfo:
            return {"v": str((value - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND)}
        case datetime():
            return {"v": value.isoformat()}
    return {"v": str(value)}


_MICROSECOND = datetime(1970, 1, 1, 0, 0, 0, 1) - datetime(1970, 1, 1)


def _parameter(given):
    value = given["parameterValue"].get("value")
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


class FakeBigQuery:
    """Use it as a context manager; ``url`` goes into ``BIGQUERY_EMULATOR_HOST``.

    Attributes:
        requests: Queries: their paths and bodies.
        rows: How many rows went to clients so far.
        execute: Runs DuckDB's SQL, to make tables.
    """

    def __init__(self):
        jobs, requests = {}, []
        self.requests = requests
        self.rows = 0
        fake = self
        connection = duckdb.connect()
        self.execute = connection.execute
        connection.execute("SET TimeZone = 'UTC'")

        def run(body):
            sql = body["query"]
            for each in body.get("queryParameters", ()):
                sql = sql.replace(f"@`{each['name']}`", _parameter(each)).replace(
                    f"@{each['name']}", _parameter(each)
                )
            translated = sqlglot.transpile(sql, read="bigquery", write="duckdb")[0]
            # There, text becomes bytes by a function.
            translated = re.sub(r"CAST\((CAST\([^()]+ AS TEXT\)) AS BLOB\)", r"ENCODE(\1)", translated)
            result = connection.cursor()
            result.execute(f"SELECT count(*) FROM ({translated})")
            (total,) = result.fetchone()
            result.execute(f"SELECT * FROM ({translated}) LIMIT 0")
            job = uuid.uuid4().hex
            jobs[job] = (
                {"fields": [_field(*column[:2]) for column in result.description]},
                total,
                result,
                translated,
            )
            return job

        def page(job, start, most):
            schema, total, result, translated = jobs[job]
            if start == 0:
                result.execute(translated)
            rows = [] if most == 0 else result.fetchmany(PAGE)
            after = start + len(rows)
            fake.rows += len(rows)
            answer = {
                "kind": "bigquery#queryResponse",
                "schema": schema,
                "jobComplete": True,
                "jobReference": {"projectId": "p", "jobId": job, "location": "EU"},
                "totalRows": str(total),
                "rows": [{"f": [_cell(each) for each in row]} for row in rows],
            }
            return answer | ({"pageToken": str(after)} if after < total else {})

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, content, status=200):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                requests.append((self.path, body))
                if body.get("useLegacySql", True):
                    return self.fail("legacy SQL is not what was asked for")
                try:
                    return self.answer(page(run(body), 0, None))
                except (duckdb.Error, sqlglot.errors.SqlglotError, OSError) as error:
                    return self.fail(str(error))

            def do_GET(self):
                parts = urlsplit(self.path)
                job = parts.path.rpartition("/")[2]
                if parts.path.endswith(f"/jobs/{job}"):
                    table = {"projectId": "p", "datasetId": "d", "tableId": job}
                    return self.answer(
                        {
                            "jobReference": {"projectId": "p", "jobId": job, "location": "EU"},
                            "status": {"state": "DONE"},
                            "configuration": {"query": {"query": "SELECT", "destinationTable": table}},
                            "statistics": {"query": {"statementType": "SELECT"}},
                        }
                    )
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                start, most = int(query.get("pageToken", 0)), query.get("maxResults")
                try:
                    return self.answer(page(job, start, most and int(most)))
                except (duckdb.Error, OSError) as error:
                    return self.fail(str(error))

            def fail(self, message):
                error = {"reason": "invalidQuery", "message": message}
                self.answer({"error": {"code": 400, "message": message, "errors": [error]}}, 400)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
