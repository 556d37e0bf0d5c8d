"""llama.cpp's own server, from the wheel of xllamacpp, in a process of its own.

python tests/support/llama_server.py MODEL.gguf PORT [--mmproj FILE] [--context TOKENS] [--key KEY]
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

READY_WITHIN_S = 120.0


@contextmanager
def llama_server(model: Path, port: int, *options: str) -> Iterator[subprocess.Popen]:
    """Runs it on a port of this machine, once it has loaded the model, and ends it."""
    with subprocess.Popen([sys.executable, __file__, str(model), str(port), *options]) as process:
        try:
            end = time.monotonic() + READY_WITHIN_S
            while not _is_ready(port):
                assert process.poll() is None, f"llama.cpp ended with {process.returncode}"
                assert time.monotonic() < end, f"llama.cpp was not ready within {READY_WITHIN_S:g} s"
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--mmproj")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--key")
    given = parser.parse_args()
    options = xllamacpp.CommonParams()
    options.model.path, options.port, options.hostnames = given.model, given.port, ["127.0.0.1"]
    options.n_ctx, options.n_parallel, options.use_jinja = given.context, 1, True
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    if given.mmproj:
        options.mmproj.path = given.mmproj
    if given.key:
        options.api_keys = [given.key]
    server = xllamacpp.Server(options)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    del server


if __name__ == "__main__":
    main()
