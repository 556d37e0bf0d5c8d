"""A C compiler that builds the CPU kernels once for all processes of a test run.

Every process that loads a model builds them: the test processes, apps, replicas and other programs, some forty in all,
each for two and a half seconds of a processor.
"""

import os
import shutil
from pathlib import Path

# The kernels' command, and nothing else, is answered from what stands beside this program. A copy in place of a file
# that is still being written would be cut off, so the name comes last.
_PROGRAM = """#!/bin/sh
[ "$*" = "-O3 -shared -fPIC -o $5 $6" ] || exec {compiler} "$@"
kept="$0-$(cksum <"$6" | tr ' ' -)"
[ -f "$kept" ] && exec cp "$kept" "$5"
{compiler} "$@" && cp "$5" "$kept-$$" && mv "$kept-$$" "$kept"
"""


def compile_once(folder: Path) -> None:
    """From now on `cc` is this one, for this process and for those that it starts. Where there is none, nothing is
    done."""
    compiler = shutil.which("cc")
    if compiler is not None:
        program = folder / "cc"
        program.write_text(_PROGRAM.format(compiler=compiler))
        program.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
