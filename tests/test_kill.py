"""`compress` killed at any moment leaves the old folder or the new one, whole."""

import signal
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import pytest
from command import call
from kill import Ending, Scene, compress_scene, forked


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    """`compress --overwrite` of a tiny BERT over a former result."""
    return compress_scene(tmp_path_factory.mktemp("compress"))


def killed(scene: Scene, parent: Path, endings: list[Ending], seconds: list[float]) -> Counter[str]:
    """How often each outcome came of kills at these moments and after these times; the next run always cleans up."""
    counts: Counter[str] = Counter()
    for ending, after in [*((ending, None) for ending in endings), *((Ending(), after) for after in seconds)]:
        found = scene.play(parent, ending, after)
        assert found.clean
        if after is None:
            assert found.code == -signal.SIGKILL
        counts[found.outcome] += 1
    return counts


@pytest.mark.parametrize("overwrite", [False, True])
def test_compress_killed_at_its_turns_leaves_the_old_or_the_new(overwrite, scene, tmp_path):
    scene = scene if overwrite else Scene(scene.work, None, scene.new)
    whole = scene.play(tmp_path / "run", Ending())
    assert whole.code == 0
    assert whole.outcome == "new"
    moments = [*whole.turns, whole.moments // 3, 2 * whole.moments // 3]
    counts = killed(scene, tmp_path / "run", [Ending(moment) for moment in moments], [0.02, 0.1])
    assert counts.keys() == {"old" if overwrite else "missing", "new"}


@pytest.mark.exhaustive
def test_hundreds_of_kills_of_compress_leave_the_old_or_the_new(scene, tmp_path):
    whole, random = scene.play(tmp_path / "run", Ending()), Random(0)
    moments = [Ending(moment) for moment in range(1, whole.moments + 1)]
    counts = killed(scene, tmp_path / "run", moments, [random.uniform(0, 0.5) for _ in range(100)])
    assert counts.keys() == {"old", "new"}


def test_a_terminated_compress_cleans_up(scene, tmp_path):
    model, work = scene.new.parent / "model", tmp_path / "work"
    work.mkdir()
    command = partial(call, "compress", model, work / "out", "--keep-ratio", 0.25)
    for moment in (4, 20, 60):
        forked(command, work, Ending(moment, signal.SIGTERM))
        assert not list(work.iterdir())
