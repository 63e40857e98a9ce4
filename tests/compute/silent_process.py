"""Stands where the compiling process would, and answers what the test says."""

import os
import sys

if __name__ == "__main__":
    sys.stdin.readline()
    print(os.environ["SILENT_ANSWER"])
