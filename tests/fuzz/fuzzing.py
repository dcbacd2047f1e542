"""Fuzzing by seed: damaged inputs, made from good ones, must end in a typed error or be taken, soon."""

import random
import signal
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlpfusion.errors import InputError

SECONDS = 10.0

# What breaks readers: numbers out of range or of another script, YAML tags and aliases, brackets, escapes, encodings.
FRAGMENTS = (
    *("", " ", "\n", "\r", "\t", "\0", "\x1b[2J", "\ufeff", "\ud800", "\U0010ffff", "²", "٣", "½", "é", "名", "\u2028"),
    *("0", "-1", "1", "9" * 25, "1" + "0" * 400, "1e-4", "1e999", "-0.0", "nan", "inf", "0x_", "0b_", "1_0", "1:30"),
    *("true", "no", "null", "~", "=", ":", ",", "%", "+", "-", "..", "/", "\\", "{}", "{0}", "{x!r}", "[/x]", "[red]"),
    *("[" * 60, "{a: " * 60, "[" * 3000, "!!int a", "!!python/object:os.system", "!!timestamp a", "!!bool zz"),
    *("&a [*a]", "*a", "&a", "2001-13-45", '"\\U0011ffff"', '"', "'", "#", "|", ">", "?", "---", "<img src=x>", "~x"),
)


class TooSlowError(Exception):
    """An input took longer than `SECONDS`."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed: `make` gives a callable for each input, which is what must end in `InputError` or well.

    `make` gets the source of random numbers and a folder that it may write into. A callable that checks refusals itself
    returns "refused" for one.
    """

    name: str
    make: Callable[[random.Random, Path], Callable[[], object]]


@dataclass
class Counts:
    """How the inputs of one target ended; `raw` holds the numbers of those that ended otherwise, by how."""

    taken: int = 0
    refused: int = 0
    raw: dict[str, list[int]] = field(default_factory=dict)

    @property
    def num_raw(self) -> int:
        """How many inputs ended neither well nor in a readable `InputError`."""
        return sum(map(len, self.raw.values()))

    def __str__(self) -> str:
        total = self.taken + self.refused + self.num_raw
        lines = [f"{total:,} inputs: {self.taken:,} taken, {self.refused:,} refused, {self.num_raw:,} raw"]
        lines += [f"    {len(inputs):,} times, first input {inputs[0]}: {how}" for how, inputs in self.raw.items()]
        return "\n".join(lines)


def fuzz(target: Target, count: int, seed: int, folder: Path) -> Counts:
    """Runs `count` inputs of `target`, each drawn from the seed and its number alone."""
    counts = Counts()
    for number in range(count):
        run = target.make(random.Random(f"{target.name} {seed} {number}"), folder)
        try:
            with time_limit():
                outcome = run()
        except InputError as error:
            how = unreadable(str(error))
        except Exception as error:
            how = place(error)
        else:
            counts.refused += outcome == "refused"
            counts.taken += outcome != "refused"
            continue
        if how is None:
            counts.refused += 1
        else:
            counts.raw.setdefault(how, []).append(number)
    return counts


def place(error: BaseException) -> str:
    """The type of an error, and the last line of the package that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mlpfusion" in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
    return f"{type(error).__name__} at {where}: {str(error)[:80]!r}"


def unreadable(message: str) -> str | None:
    """What is wrong with a message that is no line of printable text, None if it is one."""
    if len(message) > 2000:
        return "a message of more than 2,000 characters"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in message):
        return "a control character or lone surrogate in a message"
    return None


@contextmanager
def time_limit() -> Iterator[None]:
    """Raises `TooSlowError` in the block after `SECONDS`."""

    def stop(*_: object) -> None:
        raise TooSlowError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damaged(rng: random.Random, text: str) -> str:
    """`text` with one to four changes: a fragment put in or in place of a part, a part dropped, doubled or moved."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(text))
        stop = min(len(text), start + rng.choice((0, 0, 1, 3, 10)))
        part = text[start:stop]
        new = rng.choice((rng.choice(FRAGMENTS), rng.choice(FRAGMENTS), "", part * 2, chr(rng.randrange(0x110000))))
        text = text[:start] + new + text[stop:]
    return text


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data` with flipped, dropped, doubled or foreign bytes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(found))
        stop = min(len(found), start + rng.choice((0, 1, 1, 4, 20)))
        kind = rng.randrange(4)
        if kind == 0 and start < len(found):
            found[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[start:stop] = b""
        elif kind == 2:
            found[start:stop] = bytes(found[start:stop]) * 2
        else:
            found[start:stop] = rng.choice(FRAGMENTS).encode("utf-8", "surrogatepass")[:200]
    return bytes(found)
