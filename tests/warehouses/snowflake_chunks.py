"""Makes fakesnow answer as Snowflake does: the first rows in the answer, the others at URLs of their own."""

from __future__ import annotations

from base64 import b64decode, b64encode
from itertools import count

import pyarrow
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ROWS = 10_000


class SnowflakeChunks:
    """Takes the place of ``fakesnow.server.JSONResponse`` while its server is at ``url``.

    Attributes:
        rows: How many rows were fetched so far, in answers and from URLs.
    """

    def __init__(self, url):
        self.rows = 0
        self._url = url
        self._numbers = count()
        self._chunks = {}
        self.route = Route("/chunks/{number:int}", self._chunk)

    def __call__(self, content, **how):
        data = content.get("data") or {}
        if data.get("rowsetBase64"):
            content = content | {"data": data | self._divided(b64decode(data["rowsetBase64"]))}
        return JSONResponse(content, **how)

    def _divided(self, stream):
        table = pyarrow.ipc.open_stream(stream).read_all()
        first, *rest = (table.slice(start, ROWS) for start in range(0, max(table.num_rows, 1), ROWS))
        self.rows += first.num_rows
        chunks = []
        for part in rest:
            number, data = next(self._numbers), _stream(part)
            self._chunks[number] = (part.num_rows, data)
            sizes = {"uncompressedSize": len(data), "compressedSize": len(data)}
            chunks.append({"url": f"{self._url}/chunks/{number}", "rowCount": part.num_rows} | sizes)
        return {"rowsetBase64": b64encode(_stream(first)).decode(), "chunks": chunks}

    def _chunk(self, request):
        rows, data = self._chunks[request.path_params["number"]]
        self.rows += rows
        return Response(data)


def _stream(table):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
