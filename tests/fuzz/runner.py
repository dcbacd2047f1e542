"""What all fuzz harnesses share: a seeded loop, the kinds of outcome counted, `--count N --seed S`."""

import argparse
import random
from collections import Counter
from collections.abc import Callable


def run(check: Callable[[random.Random], str], count: int, seed: int) -> Counter[str]:
    """How often each outcome came of `check`, whose every call gets a generator of its own.

    What `check` raises is a finding: it comes out with the seed that shows it again.
    """
    counts: Counter[str] = Counter()
    for number in range(count):
        try:
            counts[check(random.Random(f"{seed}-{number}"))] += 1
        except Exception as error:
            error.add_note(f"input {number} of seed {seed}")
            raise
    return counts


def main(check: Callable[[random.Random], str], default_count: int) -> None:
    """Runs a harness from the command line and prints the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=default_count)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts = run(check, given.count, given.seed)
    for outcome, number in sorted(counts.items()):
        print(f"{number:8}  {outcome}")
    print(f"{counts.total():8}  in all")
