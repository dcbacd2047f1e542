"""What stands where a result goes is the old or the new folder, whatever happens, and nothing of the user's goes."""

import errno
import fcntl
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from kill import Ending, Scene, forked, path_of, without_exchange

from mlpfusion.errors import InputError
from mlpfusion.storage import atomic
from mlpfusion.storage.atomic import write_file
from mlpfusion.storage.listing import LISTING
from mlpfusion.storage.manifest import seal
from mlpfusion.storage.output import check_output, staged_folder


def write(out: Path, text: str = "new", *, overwrite: bool = True) -> None:
    """A run: the check, and two files in a folder of their own."""
    replaced = check_output(out, overwrite=overwrite)
    with staged_folder(out, replaced) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)


@pytest.fixture(params=["nothing before", "exchange", "without exchange"])
def scene(request, tmp_path, monkeypatch) -> Scene:
    """A run that writes where nothing was, or over a former result, in one step or in three."""
    monkeypatch.setattr(atomic, "exchange", atomic.exchange)  # put back in the end
    write(tmp_path / "old", "old")
    write(tmp_path / "new")
    if request.param == "without exchange":
        without_exchange()
    return Scene(write, None if request.param == "nothing before" else tmp_path / "old", tmp_path / "new")


def endings(scene: Scene, parent: Path, ending: Ending, *, turns: bool) -> dict[str, int]:
    """How often each outcome came of such an ending at each moment, or at each turn; the next run always cleans up."""
    whole = scene.play(parent, Ending())
    assert whole.code == 0
    counts: dict[str, int] = {}
    for moment in whole.turns if turns else range(1, whole.moments + 1):
        found = scene.play(parent, Ending(moment, ending.signum, ending.error))
        assert found.clean, f"{found.outcome} at moment {moment}"
        if not ending.error:
            codes: dict[int, int] = {signal.SIGTERM: 143, signal.SIGINT: 130}
            assert found.code == codes.get(ending.signum, -ending.signum)
        counts[found.outcome] = counts.get(found.outcome, 0) + 1
    return counts


# The turns are the moments before and after each rename.
at_each = pytest.mark.parametrize("turns", [True, pytest.param(False, marks=pytest.mark.slow)])


@at_each
def test_killed_at_any_moment_it_leaves_the_old_or_the_new(turns, scene, tmp_path):
    counts = endings(scene, tmp_path / "run", Ending(), turns=turns)
    expected = {"missing", "new"} if scene.old is None else {"old", "new"}
    # Without the exchange there is a moment with neither, and the next run brings the old one back.
    assert counts.keys() - {"brought back"} == expected, counts
    assert counts.get("brought back", 0) == (2 if atomic.exchange.__name__ == "missing" and scene.old else 0), counts


@pytest.mark.parametrize(
    "ending",
    [
        Ending(signum=signal.SIGTERM),
        Ending(signum=signal.SIGINT),
        Ending(error=errno.EIO),
        pytest.param(Ending(error=errno.ENOSPC), marks=pytest.mark.slow),
    ],
    ids=["SIGTERM", "SIGINT", "EIO", "ENOSPC"],
)
@at_each
def test_stopped_or_failing_at_any_moment_it_leaves_the_old_or_the_new(turns, ending, scene, tmp_path):
    counts = endings(scene, tmp_path / "run", ending, turns=turns)
    assert counts.keys() == ({"missing", "new"} if scene.old is None else {"old", "new"}), counts


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str]]:
    """The calls that bring something to the disk, name something or remove a folder, as they come, with their path."""
    found: list[tuple[str, str]] = []

    def recorded(module: Any, name: str) -> None:
        call = getattr(module, name)

        def recording(*args: Any, **options: Any) -> Any:
            path = path_of(args[0])
            result = call(*args, **options)
            found.append((name, path))
            return result

        monkeypatch.setattr(module, name, recording)

    for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (atomic, "exchange"), (shutil, "rmtree")):
        recorded(module, name)
    return found


@pytest.mark.parametrize("step", ["rename", "exchange"])
def test_a_folder_is_on_disk_before_it_gets_its_name_and_that_before_the_old_one_goes(step, calls, tmp_path):
    out = tmp_path / "parent" / "out"
    if step == "exchange":
        write(out, "old")
        calls.clear()
    write(out)
    names = [name for name, _ in calls]
    named, removed = names.index(step), names.index("rmtree")
    staged = calls[named][1]
    wanted = {staged, *(f"{staged}/{name}" for name in ("a.txt", "sub", "sub/b.txt", LISTING))}
    assert wanted <= {path for name, path in calls[:named] if name == "fsync"}
    assert ("fsync", str(out.parent)) in calls[named:removed]
    assert step == "exchange" or ("fsync", str(tmp_path)) in calls[:named]  # the name of the new parent


def test_a_file_is_on_disk_before_it_gets_its_name_and_so_is_the_name_in_the_end(calls, tmp_path):
    write_file(tmp_path / "a.json", "new")
    staged = calls[0][1]
    assert calls == [("fsync", staged), ("replace", staged), ("fsync", str(tmp_path))]


def test_what_is_sealed_is_on_disk_before_it_is_marked(calls, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one.bin").touch()
    seal(tmp_path)
    marked = [name for name, _ in calls].index("replace")
    before = {path for name, path in calls[:marked] if name == "fsync"}
    assert before >= {str(tmp_path / "part" / "one.bin"), str(tmp_path / "part"), str(tmp_path)}
    assert ("fsync", str(tmp_path)) in calls[marked:]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_during_the_run_stays_and_the_result_is_kept(overwrite, tmp_path):
    out = tmp_path / "out"
    replaced = check_output(out, overwrite=overwrite)
    with pytest.raises(InputError, match="during the run"), staged_folder(out, replaced) as folder:  # noqa: PT012
        (folder / "a.txt").write_text("new")
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    assert (out / "thesis.txt").read_text() == "mine"
    (kept,) = tmp_path.glob("out.kept-*")
    assert (kept / "a.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("exchanged", [True, False])
def test_what_comes_into_the_old_folder_during_the_run_stays(exchanged, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out, "old")
    monkeypatch.setattr(atomic, "exchange", atomic.exchange)
    if not exchanged:
        without_exchange()
    whole = atomic.swap

    def late(staged: Path, place: Path) -> None:
        if place.name == "out" and not (place / "thesis.txt").exists() and not (staged / "thesis.txt").exists():
            (place / "thesis.txt").write_text("mine")  # after the last look at it
        whole(staged, place)

    monkeypatch.setattr("mlpfusion.storage.output.swap", late)
    with pytest.raises(InputError, match="see .*out.kept-"):
        write(out)
    assert (out / "thesis.txt").read_text() == "mine"
    assert (out / "a.txt").read_text() == "old"
    (kept,) = tmp_path.glob("out.kept-*")
    assert (kept / "a.txt").read_text() == "new"


@pytest.mark.parametrize("old", [False, True])
def test_of_several_processes_with_one_output_one_wins(old, tmp_path):
    out, ready = tmp_path / "out", tmp_path / "ready"
    if old:
        write(out, "old")
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                replaced = check_output(out, overwrite=old)
                while not ready.exists():
                    pass
                with staged_folder(out, replaced) as folder:
                    (folder / "a.txt").write_text(str(number))
                code = 0
            except InputError:
                code = 2
            finally:
                os._exit(code)
        children.append(child)
    ready.touch()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    # A process that was late may see the result of another at its check: it has no result to keep then.
    assert sorted(codes)[0] == 0
    assert set(codes) <= {0, 2}
    assert codes.count(0) == 1 or old  # one that began after the end of another may replace it
    assert (out / "a.txt").read_text() == str(codes.index(0)) or codes.count(0) > 1
    kept = [path for path in tmp_path.iterdir() if path.name.startswith("out.kept-")]
    assert len(kept) <= codes.count(2)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_only_a_folder_that_this_program_wrote_is_replaced(tmp_path):
    out = tmp_path / "out"
    write(out)
    write(out, "again")
    for strange in ("notes.txt", "sub/notes.txt", "tuned/model.safetensors"):
        (out / strange).parent.mkdir(exist_ok=True)
        (out / strange).write_text("mine")
        with pytest.raises(InputError, match=f"holds {strange}, which this program did not write"):
            check_output(out, overwrite=True)
        (out / strange).unlink()
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="holds link"):
        check_output(out, overwrite=True)
    (out / "link").unlink()
    assert check_output(out, overwrite=True) is not None
    with pytest.raises(InputError, match="`out` must be empty or new"):
        check_output(out)
    for content in ("{}", "no JSON", None):
        (out / LISTING).unlink() if content is None else (out / LISTING).write_text(content)
        with pytest.raises(InputError, match="did not write"):
            check_output(out, overwrite=True)


def test_what_a_run_reads_or_stands_in_is_never_replaced(tmp_path, monkeypatch):
    out, model = tmp_path / "out", tmp_path / "out" / "model"
    write(out)
    write(model)
    (out / LISTING).write_text('["a.txt", "sub/b.txt", "model/a.txt", "model/sub/b.txt"]')
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").symlink_to(out / "a.txt")
    (tmp_path / "way").symlink_to(out)
    reads = (out, model, out / "a.txt", outside, outside / ".." / "out" / "model", tmp_path / "way" / "model")
    for one in reads:
        with pytest.raises(InputError, match="`out` must not be, and not hold"):
            check_output(out, overwrite=True, reads=[None, str(one)])
    with pytest.raises(InputError, match="must not be, and not hold"):
        check_output(tmp_path / "fresh", writes=[str(tmp_path / "fresh" / "cache")])
    with pytest.raises(InputError, match="must not be, and not hold"):
        check_output(tmp_path / "fresh", writes=[str(tmp_path / "fresh.unfinished" / "cache")])
    monkeypatch.setenv("HOME", str(out / "sub"))
    with pytest.raises(InputError, match="must not be, and not hold"):
        check_output(out, overwrite=True)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(model)
    for place in (out, Path("."), Path(".."), Path("../../out"), Path("/")):
        with pytest.raises(InputError, match="must not be, and not hold|got the mount point"):
            check_output(place, overwrite=True)
    assert check_output(tmp_path / "fresh", reads=["owner/name", str(out)]) is None
    assert check_output(model / "inside", reads=[str(model)]) is None


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    write(full)
    for name, target in (("to-full", full), ("to-nothing", tmp_path / "nothing"), ("to-empty", tmp_path / "empty")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "empty").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    places = [
        file,
        file / "x",
        tmp_path / ("n" * 250),
        tmp_path / ("n" * 300) / "out",
        tmp_path / "a\0b",
        Path("/proc/x"),
    ]
    places += [Path("/proc"), tmp_path / "\ud800", *(tmp_path / name for name in ("to-full", "to-nothing", "to-empty"))]
    for place in places:
        with pytest.raises(InputError, match="`out` must be"):
            check_output(place, overwrite=True)
    assert check_output(tmp_path / "new" / "parents" / "out") is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_what_dead_writers_left_is_removed_and_nothing_else(tmp_path):
    out, precious = tmp_path / "o.t", tmp_path / "precious"
    write(precious)
    write(out)
    dead = [".o.t.incomplete-0123abcd", ".o.t.replaced-0123abcd", ".o.t.unfinished.removed-0123abcd"]
    dead += [".o.t.unfinished.incomplete-0123abcd"]
    others = [
        ".o.t.incomplete-0123abc",
        ".oxt.incomplete-0123abcd",
        "o.t.kept-0123abcd",
        ".o.t.incomplete-0123abcd.txt",
    ]
    living = [".o.t.incomplete-11111111"]
    for name in (*dead, *others, *living):
        write(tmp_path / name)
    (tmp_path / ".o.t.incomplete-22222222").symlink_to(precious)
    (tmp_path / dead[0] / "link").symlink_to(precious)
    descriptor = os.open(tmp_path / living[0], os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    check_output(out, overwrite=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"o.t", "precious", ".o.t.incomplete-22222222", *others, *living}
    assert (precious / "a.txt").read_text() == "new"
    os.close(descriptor)
    check_output(out, overwrite=True)
    assert not (tmp_path / living[0]).exists()


def test_a_complete_old_copy_gets_its_name_back(tmp_path):
    out, whole, partial = tmp_path / "out", tmp_path / ".out.replaced-0123abcd", tmp_path / ".out.replaced-1123abcd"
    write(partial, "partial")
    (partial / "a.txt").unlink()
    assert check_output(out) is None
    assert partial.exists()
    write(whole, "old")
    with pytest.raises(InputError, match="`out` must be empty or new"):
        check_output(out)
    assert (out / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_the_old_or_the_new_at_any_moment(tmp_path):
    work, moment, found = tmp_path / "work", 0, set()
    work.mkdir()
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        moment += 3
        (work / "a.json").write_text("old")
        code, _, _ = forked(lambda: write_file(work / "a.json", "new"), work, Ending(moment))
        found.add((work / "a.json").read_text())
    assert code == 0
    assert moment > 10
    assert found == {"old", "new"}
    assert [path.name for path in work.iterdir()] == ["a.json"]  # the last run swept


def test_a_file_is_written_whole_inside_a_folder_on_its_way(tmp_path):
    with staged_folder(tmp_path / "out") as folder:
        write_file(folder / "a.txt", "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
