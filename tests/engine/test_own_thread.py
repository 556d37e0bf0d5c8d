"""Work in threads that end with it, and with them OpenMP's pools, which would slow the engine's loop."""

import os
import subprocess
import sys
import threading

import pytest
from places import REPOSITORY

from gemma3_core.engine.own_thread import start_in_own_thread

SERVER = """
import os, sys, threading, time
import numpy, torch
from PIL import Image
from gemma3_core.engine import Answered, Engine, Request, Turn

def count():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

def pools(label, few=None):
    time.sleep(0.3)
    while any(thread.name == "cpu_kernels" for thread in threading.enumerate()):
        time.sleep(0.1)
    end = time.monotonic() + 20
    while few is not None and count() > few and time.monotonic() < end:  # a pool's threads end a little later
        time.sleep(0.1)
    print(label, found := count())
    return found

few = pools("start")
engine = Engine.load(sys.argv[1], device="cpu")
pools("loaded", few)
picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (900, 300, 3), dtype=numpy.uint8))
request = Request((Turn("user", "what is this", (picture,)),), max_new_tokens=4, pan_and_scan=True)
*_, done = engine.stream(request)
pools("answered", few)
list(engine.preview([picture], True))
pools("previewed", few)
engine.attention(Answered(request, done), [1])
pools("looked", few)
torch.randn(2000, 2000) @ torch.randn(2000, 2000)
pools("multiplied")
unread = engine.stream(Request((Turn("user", "what"),), max_new_tokens=400))
next(unread), next(unread)
"""


def test_its_result_and_its_error_come_back():
    assert start_in_own_thread(lambda: threading.current_thread().name, "mine").result(5) == "mine"
    failing = start_in_own_thread(lambda: [][0], "mine")
    with pytest.raises(IndexError):
        failing.result(5)


@pytest.mark.skipif(sys.platform != "linux", reason="a process's threads are read from Linux's /proc")
def test_no_pool_of_openmp_stays_beside_the_loops_and_a_program_ends_in_good_order_while_an_answer_is_written(
    chat_folder,
):
    given = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", SERVER, str(chat_folder)]
    ran = subprocess.run(command, capture_output=True, text=True, env=given, cwd=REPOSITORY, timeout=240)
    assert (ran.returncode, ran.stderr) == (0, "")
    pools = {label: int(number) for label, number in map(str.split, ran.stdout.splitlines())}
    assert pools.pop("multiplied") > pools["start"], "otherwise this sees no pool"
    assert set(pools.values()) == {pools["start"]}
