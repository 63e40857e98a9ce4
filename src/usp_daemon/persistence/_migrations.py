"""From older formats to the present one, a version at a time.

| from | to | what changed                                                                                           |
|------|----|--------------------------------------------------------------------------------------------------------|
| 0    | 1  | the header gained ``num_input_partitions`` and ``counters``; ``epoch`` was renamed to ``config_epoch`` |

Version 0 was the layout before the first release. It is kept readable because a path that nothing walks does not hold.

A new version gets a function here, a row above, and a file of the old version under ``tests/persistence/fixtures``.
The frame (magic, version, header's length and checksum, hash at the end) and the header's table of arrays are the same
in every version, so a function sees the rest of the header, as plain values, and the arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Header = dict[str, Any]
Arrays = dict[str, np.ndarray]
# Gives the header and the arrays in the next version. Arrays is empty when only a header is being read.
MigrateFn = Callable[[Header, Arrays], tuple[Header, Arrays]]


def _from_0(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    header = dict(header)
    # 0 stands for "not known": whoever restores must not conclude that the topic was re-partitioned.
    header["num_input_partitions"] = 0
    header["counters"] = {}
    header["config_epoch"] = header.pop("epoch")
    return header, arrays


MIGRATIONS: Mapping[int, MigrateFn] = {0: _from_0}


def migrate(version: int, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Header and arrays of ``version`` in the present one. Raises ``KeyError`` when the old header lacks a member."""
    for step in range(version, len(MIGRATIONS)):
        header, arrays = MIGRATIONS[step](header, arrays)
    return header, arrays
