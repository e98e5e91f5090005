"""A server that reads a request, answers as Talon.One does when all is well, and keeps nothing: cheaper than
the emulator."""

from __future__ import annotations

import asyncio
import sys

CREATED = b'{"id": 1, "created": "2026-01-01T00:00:00Z", "accountId": 1, "name": "VIP", "integration": "x", "integrationId": "vip"}'  # noqa: E501
STATE = b'{"effects": [], "createdCoupons": [], "createdReferrals": []}'
JSON = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            await reader.readexactly(int(headers.get(b"content-length", 0)))
            if head.startswith(b"POST"):
                writer.write(JSON % (b"201 Created", len(CREATED), CREATED))
            elif head.startswith(b"PUT /cdp/customer_profile/"):
                writer.write(JSON % (b"200 OK", len(STATE), STATE))
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
