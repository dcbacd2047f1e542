"""Damaged inputs of every kind end in a typed error of one readable line, soon, or are taken."""

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz_key import check_key
from fuzzing import Target, fuzz, unreadable
from targets import TARGETS

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
quietly = pytest.mark.filterwarnings("ignore")
FEW = {"key": 400, "checkpoints": 200}


@quietly
@each_target
@pytest.mark.slow
def test_five_thousand_damaged_inputs_end_well(target: Target, tmp_path: Path) -> None:
    counts = fuzz(target, FEW.get(target.name, 1200), 1, tmp_path)
    print(f"{target.name}, {counts}")
    assert not counts.num_raw, str(counts)


@quietly
@pytest.mark.parametrize(
    "target", [target for target in TARGETS.values() if target.name not in FEW], ids=lambda target: target.name
)
def test_a_few_damaged_inputs_end_well(target: Target, tmp_path: Path) -> None:
    counts = fuzz(target, 60, 0, tmp_path)
    assert not counts.num_raw, str(counts)


@pytest.mark.slow
def test_edited_keys_are_refused_or_change_nothing_and_both_happen() -> None:
    outcomes = Counter(check_key(random.Random(f"key 0 {number}")) for number in range(150))
    assert outcomes["refused"] > 75
    assert outcomes["the same"] + outcomes["unchanged"] > 4


def test_other_errors_and_hangs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzing.SECONDS", 0.05)

    def make(rng: random.Random, folder: Path) -> Callable[[], object]:
        return rng.choice([lambda: {}["x"], lambda: time.sleep(5)])

    counts = fuzz(Target("broken", make), 12, 0, tmp_path)
    assert (counts.taken, counts.refused, counts.num_raw) == (0, 0, 12)
    assert {how.split()[0] for how in counts.raw} == {"KeyError", "TooSlowError"}


@pytest.mark.parametrize("message", ["x" * 2001, "a\x1b[2Jb", "a\nb", "\ud800"])
def test_a_message_that_is_no_readable_line_is_told(message: str) -> None:
    assert unreadable(message)
    assert not unreadable("`layers` must be `all`, got 'é'")
