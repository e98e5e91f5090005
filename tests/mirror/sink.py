"""A server that reads a request and answers 204, or 201 to a POST, and keeps nothing: cheaper than the emulator."""

from __future__ import annotations

import asyncio
import sys

CREATED = b'{"id": 1, "created": "2026-01-01T00:00:00Z", "accountId": 1, "name": "VIP", "integration": "x", "integrationId": "vip"}'


async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            await reader.readexactly(int(headers.get(b"content-length", 0)))
            if head.startswith(b"POST"):
                kind = b"Content-Type: application/json\r\n"
                writer.write(
                    b"HTTP/1.1 201 Created\r\n%sContent-Length: %d\r\n\r\n%s" % (kind, len(CREATED), CREATED)
                )
            else:
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


asyncio.run(main())
