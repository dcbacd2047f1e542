"""Runs the fuzzers: `PYTHONPATH=tests python tests/fuzz/run.py --count 1000 yaml data`; without names, all."""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

from fuzzing import fuzz
from targets import TARGETS
from transformers.utils import logging


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--count", type=int, default=1000, help="inputs a target")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    num_raw = 0
    for name in arguments.targets:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            counts = fuzz(TARGETS[name], arguments.count, arguments.seed, Path(folder))
        num_raw += counts.num_raw
        print(f"{name}, {time.perf_counter() - started:.0f} s, {counts}", flush=True)
    return int(num_raw > 0)


if __name__ == "__main__":
    sys.exit(main())
