"""Starts app.py as a Space does, in a process of its own: `python as_a_space.py`, with a Space's variables set.

On a ZeroGPU Space (SPACES_ZERO_GPU) it is the `spaces` package itself that decorates, forks, pickles and reports; only
what needs a GPU is replaced: the weights, which a child would copy to the GPU, stay where they are.
"""

import os
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def refuse_the_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: a Space without network must neither look for nor reach another machine."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "None"):
        print("REACHED FOR THE NETWORK:", host, flush=True)
        raise OSError("there is no network")


def pretend_a_gpu() -> None:
    import torch

    if torch.version.cuda is None:  # what the package expects of a torch that is built for CUDA
        torch.version.cuda = "12.8"
        torch._C._cuda_init = None
        torch.cuda._is_in_bad_fork = torch.cuda.is_initialized
    import gradio  # noqa: F401  before the package, as in the app
    from spaces.zero import torch as borrowed
    from spaces.zero.torch import patching

    def move(**_: Any) -> None:
        for fake, original in patching.cuda_aliases.items():
            fake.data = original

    borrowed.init = lambda _uuid: None
    borrowed.pack = lambda: 0
    borrowed.move = move


if __name__ == "__main__":
    sys.addaudithook(refuse_the_network)
    sys.path.insert(0, str(REPOSITORY))
    if os.environ.get("SPACES_ZERO_GPU"):
        pretend_a_gpu()
    sys.argv = ["app.py"]
    import app

    app.main()
