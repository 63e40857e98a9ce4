"""``python -m usp_daemon.compute._compile_ahead``: compiles a structure and leaves it in the cache on disk.

Standard input: one line of JSON, a :class:`CompileRequest`, and then silence; at its end the process gives up. Standard
output: one line of JSON with the seconds that compiling took, the cache's folder and the program's digest.
"""

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from usp_daemon.core import PredictorConfig

from ._cache import enable_compilation_cache
from ._device import choose_device
from ._prepare import CompileRequest
from ._program import compile_programs

_LOWEST_PRIORITY = 19
_GIVEN_UP = 3


def _give_up_with_parent() -> None:
    sys.stdin.read()
    os._exit(_GIVEN_UP)


def main() -> NoReturn:
    """Entry point."""
    os.nice(_LOWEST_PRIORITY)
    request = CompileRequest(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_give_up_with_parent, daemon=True).start()
    choice = choose_device(request.device, request.precision, request.tile_width, request.refresh_width)
    folder = enable_compilation_cache(choice, Path(request.cache_directory))
    module, _, name = request.origin.partition(":")
    program = getattr(importlib.import_module(module), name)()
    config = PredictorConfig(**request.parameters)
    programs = compile_programs(program, config.as_arrays(choice.dtype), choice, folder)
    used = None if folder is None else str(folder)
    answer = {"seconds": programs.compile_seconds, "folder": used, "digest": program.digest}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # at once, also while the other thread waits on standard input


if __name__ == "__main__":
    main()
