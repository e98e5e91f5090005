"""Object storage in memory, and a process that can be killed at any step; moto's S3 on loopback."""

from __future__ import annotations

import io
import logging
import threading
from contextlib import contextmanager

import pytest


class KilledError(BaseException):
    """The process is dead: whatever it still tries has no effect."""


class Process:
    """Counts the steps that others can see, and dies at one of them.

    A SIGKILL runs no ``finally`` block. Python does run them here, so all that a dead process does fails.

    Args:
        dies_at: Number of the step before which it dies, or None.
    """

    def __init__(self, dies_at=None):
        self.dies_at = dies_at
        self.steps = 0
        self.dead = False
        self.died_reading = False

    def step(self, *, reads=False):
        if self.steps == self.dies_at:
            self.dead = True
            self.died_reading = reads
        self.steps += 1
        if self.dead:
            raise KilledError


class Storage:
    """An object store in memory: an object is there whole after ``close``, or as it was before.

    Args:
        process: Who writes; ``process`` may be replaced, the objects stay.
    """

    def __init__(self, process=None):
        self.process = process or Process()
        self.objects = {}
        self.before_effect = lambda doing, name: None

    def folder(self):
        return StoredPath(self, "")

    def get(self, name):
        self.process.step(reads=True)
        self.before_effect("read", name)
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]

    def ls(self, name, detail):
        """List a folder with one request, as fsspec does."""
        self.process.step(reads=True)
        self.before_effect("list", name)
        below = {each.removeprefix(f"{name}/") for each in self.objects if each.startswith(f"{name}/")}
        return sorted({f"{name}/{each.split('/')[0]}" for each in below})

    def cat_file(self, name):
        """Read an object with one request, as fsspec does."""
        return self.get(name)

    def open(self, name, mode):
        return _Upload(self, name) if mode == "wb" else io.BytesIO(self.get(name))

    def invalidate_cache(self):
        """There is none."""

    def put(self, name, data):
        self.process.step()
        self.before_effect("write", name)
        self.objects[name] = data
        self.process.step()

    def rm_file(self, name):
        """Delete an object with one request, as fsspec does."""
        self.process.step()
        self.before_effect("delete", name)
        if name not in self.objects:
            raise FileNotFoundError(name)
        del self.objects[name]
        self.process.step()


class StoredPath:
    """The part of ``UPath`` that the ledger uses."""

    protocol = "memory"

    def __init__(self, storage, path):
        self._storage = storage
        self._path = path

    @property
    def fs(self):
        return self._storage

    @property
    def path(self):
        return self._path

    def __truediv__(self, name):
        return StoredPath(self._storage, f"{self._path}/{name}")

    def __str__(self):
        return f"memory:/{self._path}"

    @property
    def name(self):
        return self._path.rpartition("/")[2]

    @property
    def parent(self):
        return StoredPath(self._storage, self._path.rpartition("/")[0])


class _Upload:
    def __init__(self, storage, name):
        self._storage = storage
        self._name = name
        self._parts = []
        self.closed = False

    def write(self, data):
        self._parts.append(bytes(data))
        return len(data)

    def flush(self):
        pass

    def discard(self):
        self._parts.clear()

    def close(self):
        if not self.closed:
            self.closed = True
            self._storage.put(self._name, b"".join(self._parts))


@contextmanager
def s3_served():
    """Serve moto's S3 while the block runs; its URL.

    S3 alone: moto's server for all services looks through its folders for each request.
    """
    moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="needs moto[server] and s3fs")
    from werkzeug.serving import make_server  # noqa: PLC0415 - moto brings it

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        "127.0.0.1", 0, moto.create_backend_app("s3"), threaded=True, request_handler=moto.MotoRequestHandler
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
