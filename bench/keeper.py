"""A stand-in for Talon.One that keeps who is a member of the audience ``vip``, in 9 bytes for each change.

Usage: ``python bench/keeper.py --rate N --service-time S``; prints its URL. It answers 409 when a profile is
in two requests at once, and 429 over its rate. ``GET /`` answers its counts as JSON; ``GET /NUMBER`` the
changes of a bucket, 0 to 255, in the order in which they came: eight bytes of the ID's hash, and 1 or 0 for
an addition or a removal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from hashlib import blake2b

import orjson
from stub import Bucket, response

BUCKETS = 256
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def hashed(profile_id: str) -> bytes:
    """Eight bytes for an ID; its bucket is the first of them."""
    return blake2b(profile_id.encode(), digest_size=8).digest()


class Keeper:
    """All members.

    Args:
        bucket: The rate limit.
        service_time: Seconds from a request to its answer.
    """

    def __init__(self, bucket: Bucket, service_time: float) -> None:
        self._bucket = bucket
        self._service_time = service_time
        self._changes = [bytearray() for _ in range(BUCKETS)]
        self._busy: set[bytes] = set()
        self._counts = {"requests": 0, "throttled": 0, "conflicts": 0, "changes": 0}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                writer.write(self._look(head) if head.startswith(b"GET") else await self._change(body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _look(self, head: bytes) -> bytes:
        number = head.split()[1].strip(b"/")
        answer = bytes(self._changes[int(number)]) if number else json.dumps(self._counts).encode()
        return response(b"200 OK", answer)

    async def _change(self, body: bytes) -> bytes:
        self._counts["requests"] += 1
        if not self._bucket.take():
            self._counts["throttled"] += 1
            return response(b"429 Too Many Requests", b"{}")
        entries = orjson.loads(body)["data"]
        keys = [hashed(entry["customerProfileId"]) for entry in entries]
        if not self._busy.isdisjoint(keys):
            self._counts["conflicts"] += 1
            return response(b"409 Conflict", b"{}")
        self._busy.update(keys)
        for key, entry in zip(keys, entries, strict=True):
            for action, audiences in ((b"\1", entry["adds"]), (b"\0", entry["deletes"])):
                for audience in audiences:
                    assert audience == "vip"
                    self._changes[key[0]] += key + action
                    self._counts["changes"] += 1
        await asyncio.sleep(self._service_time)
        self._busy.difference_update(keys)
        return response(b"204 No Content")


async def main() -> None:
    """Serve on a free port of the loopback until this process is ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--service-time", type=float, required=True, help="seconds")
    options = parser.parse_args()
    keeper = Keeper(Bucket(options.rate, burst=10), options.service_time)
    server = await asyncio.start_server(keeper.serve, "127.0.0.1", 0, limit=1 << 20)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
