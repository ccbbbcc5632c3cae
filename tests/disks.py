"""A real small disk to fill up, and a real S3 server to lose the network to."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 1) -> Iterator[Path]:
    """A file system of its own of this size. Skips the test where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond this many bytes: a failing disk that needs no privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def s3_server(port: int = 0) -> Iterator[str]:
    """An S3 server on loopback with a bucket `bucket`; yields the query that leads a URI to it.

    Empty on a port of its own (0); on a given one, what this process stored before is there again.
    """
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        try:
            from pyarrow.fs import S3FileSystem

            host, server_port = server.get_host_and_port()
            if not port:
                urlopen(f"http://{host}:{server_port}/moto-api/reset", data=b"").close()
            here = f"{host}:{server_port}"
            store = S3FileSystem(endpoint_override=here, scheme="http", allow_bucket_creation=True)
            store.create_dir("bucket")
            yield f"?endpoint_override={here}&scheme=http"
        finally:
            server.stop()
