"""The fake program as another process may get it: ``compute.prepared_program:program`` with the tests on its path."""

import dataclasses
import os

from . import fake_program


def program():
    """The fake program with an origin and a digest; ``BROKEN_PROGRAM`` makes it fail, for the one who asks for it."""
    if "BROKEN_PROGRAM" in os.environ:
        raise RuntimeError("this program is broken")
    return dataclasses.replace(fake_program.FAKE_PROGRAM, digest="fake", origin="compute.prepared_program:program")
