"""``python -m benchmarks``: the short form of every benchmark."""

from .bench import main

raise SystemExit(main())
