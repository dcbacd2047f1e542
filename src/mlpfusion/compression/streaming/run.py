"""Compresses a checkpoint that need not fit into memory: one block at a time, shared out over the processes."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.config import CONFIG, read_config
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import check_finite
from mlpfusion.checkpoint.save import CutFiles, block_paths
from mlpfusion.checkpoint.stored_model import StoredModel
from mlpfusion.compression.calibration.checks import check_ids
from mlpfusion.compression.calibration.passes import BlockPasses, block_passes, computed_by
from mlpfusion.compression.calibration.traces import TracedCalibration, streamed_traces
from mlpfusion.compression.checkpoint import About, Work, no_stock_form, with_origin, write_about
from mlpfusion.compression.install import new_record, site_record
from mlpfusion.compression.loading import loading_class
from mlpfusion.compression.plan import Plan, make_plan
from mlpfusion.compression.provenance import hash_site
from mlpfusion.compression.run import MethodRun, check_finite_outcomes, run_method
from mlpfusion.compression.settings import Settings
from mlpfusion.compression.streaming.block_files import BlockFiles, FinishedBlock
from mlpfusion.compression.streaming.launch import Launch
from mlpfusion.compression.streaming.memory import SeenTokens, expected_bytes, gradient_needs
from mlpfusion.data.unlabelled.calibration_texts import CalibrationSource, PreparedCalibration
from mlpfusion.errors import InputError
from mlpfusion.kinds.key import FusionKey, key_to_dict
from mlpfusion.kinds.kind import KEY
from mlpfusion.kinds.narrow_experts import gathered
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.kinds.rebuild import rebuild_sites
from mlpfusion.kinds.stock.entries import set_key
from mlpfusion.kinds.table import rebuild, site_size, stored_form
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import METHODS
from mlpfusion.mlp import MLP
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import RECORD_FILE, Record, record_from_dict, versions, warn_if_degenerate
from mlpfusion.sites.detect import left_out
from mlpfusion.sites.proof.row_check import check_visited, checked_sites
from mlpfusion.sites.recording import recording
from mlpfusion.sites.sites import Site, base_model, base_prefix, by_holder, read_mlp
from mlpfusion.sites.waiting import in_run_order
from mlpfusion.storage.atomic import write_file
from mlpfusion.storage.output import Occupant, staged_folder
from mlpfusion.storage.unfinished import expect_record, normalised, opened_work, remove_work, work_folder

_SOURCE_FILE = "source.json"


@dataclass(frozen=True)
class Unfinished:
    """What is done with an unfinished run beside OUT, and the files that OUT must not be or hold."""

    resume: bool
    overwrite: bool
    reads: tuple[str | None, ...]


def check_streamed(method: Any, selection: Selection, *, data_free: bool) -> None:
    """Raises `InputError` for what needs more than one block at a time."""
    reason = why_not_streamed(method, selection, data_free=data_free)
    if reason is not None:
        raise InputError(reason)


def why_not_streamed(method: Any, selection: Selection, *, data_free: bool) -> str | None:
    """The message for what needs more than one block at a time; None if nothing does."""
    row, name = METHODS[type(method)], method_name(type(method))
    if row.sees == "labels" or row.ranked_together:
        return f"`method` must be one that looks at each block by itself with `stream`, got {name}"
    if row.second_step(method) is not None:
        return f"`method` must have no second step with `stream`, as ntk-match with `match=none`, got {name}"
    given = {"budget": selection.budget is not None, "data_free": data_free}
    field = next((field for field, is_given in given.items() if is_given), None)
    return None if field is None else f"`{field}` must be left out with `stream`"


def checked_launch(work: Work) -> Launch:
    """The launch of this process. Raises `InputError` for several processes where each block waits for another."""
    launch = Launch.of_this_process()
    if work.sequential and launch.size > 1:
        raise InputError(
            f"`sequential` must be left out for {launch.size} processes: a block waits for those before it"
        )
    return launch


def stream_checkpoint(
    source: Checkpoint,
    work: Work,
    texts: CalibrationSource | None,
    out: Path,
    unfinished: Unfinished,
    about: About,
) -> Record | None:
    """Compresses `source` into the new folder `out` with one MLP, or the experts of one mixture, in memory at a time.

    The files have the same bytes as without streaming. For a calibrated method all texts go through the model once, and
    wait at each block. Of the processes of a launch (`torchrun`) each takes its share of the blocks; only the first
    returns the record. Finished blocks are kept in `OUT.unfinished` until all are there, with `resume` they are not
    computed again. Raises `InputError` as `compress` does, and for weights that changed since the run began.
    """
    launch = checked_launch(work)
    prepared = None if texts is None else texts.prepare(source.folder, source.empty(), work.seed)
    with StoredModel(source.folder, source.config) as stored:
        stream = Stream(source, work, prepared, stored, BlockFiles(work_folder(out)), launch)
        if not launch.is_first:
            if launch.has_begun(out, resume=unfinished.resume):
                stream.compress_blocks()
                launch.end(out)
            return None
        with opened_work(
            out,
            stream.identity(),
            RECORD_FILE,
            resume=unfinished.resume,
            overwrite=unfinished.overwrite,
            reads=unfinished.reads,
        ) as opened:
            if opened.done is not None:
                return record_from_dict(opened.done)
            for file in source.weight_files:
                check_finite(file)
            launch.begin(out)
            gigabytes, total = stream.expected_bytes / 2**30, len(stream.blocks)
            work.progress(0, total, f"at most {gigabytes:.1f} GiB of memory are expected")
            digest = stream.checked_hash()
            stream.compress_blocks()
            launch.wait_for_others(out, work.progress, total)
            return stream.put_together(digest, out, opened.replaced, about)


@dataclass(frozen=True)
class Stream:
    """One run: blocks are the MLPs, and the mixtures of experts, of the plan."""

    source: Checkpoint
    work: Work
    texts: PreparedCalibration | None
    stored: StoredModel
    files: BlockFiles
    launch: Launch

    @cached_property
    def plan(self) -> Plan:
        """The sites and their widths. Raises `InputError` as `compress` does before it changes anything."""
        with self.stored.runnable():
            _, sites = checked_sites(self.stored.model, self.source.row, held=self.stored.in_memory)
        plan = make_plan(sites, self.work.selection)
        check_visited(self.stored.model, plan.sites)
        return plan

    @cached_property
    def blocks(self) -> list[Plan]:
        """The plan of every block."""
        widths = dict(self.plan.entries)
        groups = by_holder(self.plan.sites).values()
        return [replace(self.plan, entries=tuple((site, widths[site]) for site in group)) for group in groups]

    @cached_property
    def cut_files(self) -> CutFiles:
        """The files of the checkpoint without the blocks."""
        return CutFiles(self.source.empty(), self.source.folder, block_paths(block.sites[0] for block in self.blocks))

    @cached_property
    def batches(self) -> list[Batch]:
        """What a calibrated method sees, none for another."""
        model = self.stored.model
        batches = [] if self.texts is None else self.texts.batches(model, self.work.progress)
        check_ids(model, batches)
        return batches

    @cached_property
    def expected_bytes(self) -> int:
        """The memory that the run is expected to take, at most."""
        seen = SeenTokens.of(self.batches, self.work.method)
        return expected_bytes(self.stored.model, self.plan, seen, sequential=self.work.sequential)

    @property
    def settings(self) -> Settings:
        """What the record says of the run."""
        return Settings(self.work.method, self.work.selection, self.work.seed, self.work.sequential)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on with the blocks of another."""
        digest = hashlib.sha256((self.source.folder / CONFIG).read_bytes())
        for name, tensor in sorted(self.stored.tensors.items()):
            digest.update(f"{name} {tensor.file.name} {tensor.dtype} {tensor.shape}\n".encode())
        told = self.settings.recipe() | self.source.row_for_identity()
        if self.texts is not None:
            seen = hashlib.sha256()
            for batch in self.batches:
                for name, tensor in batch.items():
                    seen.update(f"{name} {tensor.tolist()}".encode())
            told["calibration"] = seen.hexdigest()
        told |= {"model": digest.hexdigest(), "device": self.work.device, "versions": versions()}
        return normalised(told)

    def checked_hash(self) -> str:
        """The hash of the MLPs to be cut. Raises `InputError` unless they are those that the run began with."""
        digest, base = hashlib.sha256(), base_model(self.stored.model)
        for number, block in enumerate(self.blocks):
            site = block.sites[0]
            self.work.progress(number, len(self.blocks), f"reading {site.holder}")
            with self.stored.in_memory(base.get_submodule(site.holder)):
                hash_site(digest, base, site)
        file, found = self.files.folder / _SOURCE_FILE, digest.hexdigest()
        if not file.exists():
            write_file(file, json.dumps(found))
        if json.loads(file.read_text(encoding="utf-8")) != found:
            raise InputError(
                f"`model` must be what it was when the run in {self.files.folder} began, its MLPs have changed; "
                "--overwrite starts anew"
            )
        return found

    def compress_blocks(self) -> None:
        """Computes the blocks of this process that are not there yet."""
        mine = range(self.launch.index, len(self.blocks), self.launch.size)
        missing = [number for number in mine if self.files.read(number) is None]
        if self.texts is None:
            for number in missing:
                self._compress(number)
        elif missing:
            self._compress_calibrated(missing)

    def _compress_calibrated(self, missing: Sequence[int]) -> None:
        """The same with what enters each block; the passes go through all blocks up to the last that is missing."""
        numbers = {site.path: number for number, block in enumerate(self.blocks) for site in block.sites}
        running = StoredModel(self.source.folder, read_config(self.source.folder))
        with running, running.runnable(recorded=True), ExitStack() as contexts:
            traced = self._traced(running.model)
            contexts.enter_context(recording(running.model, gradients=False))
            sites = in_run_order(running.model, self.plan.sites, self.batches[0])
            order = list(dict.fromkeys(numbers[site.path] for site in sites))
            with block_passes(running.model, sites, self.batches, traced, sequential=self.work.sequential) as passes:
                for number in order[: 1 + max(order.index(one) for one in missing)]:
                    if number in missing:
                        self._compress(number, passes)
                    else:
                        self._pass(number, passes, running.model)

    def _traced(self, running: PreTrainedModel) -> TracedCalibration | None:
        """The traces of all blocks for a method that needs gradients, None for another."""
        needs = gradient_needs(self.work.method)
        if needs is None:
            return None
        self.work.progress(0, len(self.blocks), "recording gradients")
        return streamed_traces(running, self.plan.sites, self.batches, self.work.seed, needs)

    def _pass(self, number: int, passes: BlockPasses, running: PreTrainedModel) -> None:
        """Lets the passes go on behind a block that is there already."""
        sites = self.blocks[number].sites
        passes.at(sites[0])
        if self.work.sequential:
            originals = [read_mlp(running, site) for site in sites]
            for site, block in zip(sites, self.files.computed(number, originals), strict=True):
                passes.go_on_with(site, block)

    def _compress(self, number: int, passes: BlockPasses | None = None) -> None:
        block, started, model = self.blocks[number], time.perf_counter(), self.stored.model
        base, progress = base_model(model), _of_block(self.work.progress, number, len(self.blocks))
        device, module = torch.device(self.work.device), base.get_submodule(block.sites[0].holder)
        outcomes, computed = list[Outcome](), list[MLP]()

        def finished(site: Site, original: MLP, outcome: Outcome) -> None:
            if passes is not None and self.work.sequential:
                computed.append(computed_by(original, outcome))
                passes.go_on_with(site, computed[-1])

        calibration = None if passes is None else passes.at
        for entry in block.entries:  # one expert of a mixture after the other
            run = MethodRun(replace(block, entries=(entry,)), self.work.method, self.work.seed, device, progress)
            with self.stored.in_memory(module, entry[0].expert):
                outcomes += run_method(model, run, calibration, finished=finished)
        check_finite_outcomes(block, outcomes, self.settings.method_name)
        ((site, outcome),) = gathered(block.sites, outcomes)
        with self.stored.in_memory(module, site.expert):
            before, (entry, tensors) = site_size(base, site), stored_form(model, site, outcome)
        rebuild(model, site, entry)
        named = self.cut_files.named(model, {base_prefix(model) + name: one for name, one in tensors.items()})
        record, seen = site_record(site, before, entry, outcome.metrics), passes.sizes[0] if passes else None
        finished_block = FinishedBlock(entry, record, time.perf_counter() - started, seen)
        self.files.write(number, finished_block, named, computed)

    def put_together(self, digest: str, out: Path, replaced: Occupant | None, about: About) -> Record:
        """Writes `out`, complete or not at all, of the blocks of all processes."""
        finished = [self.files.read_whole(number) for number in range(len(self.blocks))]
        model, row, device = self.stored.model, self.source.row, torch.device(self.work.device)
        records = [one.record for one in finished]
        warn_if_degenerate(records)
        entries = {one.record.path: one.entry for one in finished}
        key = FusionKey(row, entries, self.settings.method_name, self.work.seed, digest)
        expected = self.expected_bytes  # before the blocks get narrower
        rebuild_sites(model, key)
        set_key(model, key)
        settings = replace(self.settings, calibration=finished[0].seen)
        record = replace(
            new_record(model, records, row, settings, digest, device),
            seconds=round(sum(one.seconds for one in finished), 3),
            original=self.cut_files.size,
            model=self.source.origin,
            left_out=left_out(self.source.empty(), row),
            expected_peak_bytes=expected,
            no_stock_form=no_stock_form(self.source, model.config),
            load_as=loading_class(self.source.folder, model),
        )
        if self.texts is not None:
            record = with_origin(record, self.texts, self.work.seed)
        new = {name: one for number in range(len(finished)) for name, one in self.files.tensors(number).items()}
        with staged_folder(out, replaced) as folder:
            record = replace(record, compressed=self.cut_files.write(folder, new, {KEY: key_to_dict(key)}, model))
            write_about(folder, self.source, record, about)
            expect_record(out, record.to_json())
        remove_work(out)
        return record


def _of_block(progress: Progress, number: int, total: int) -> Progress:
    """The progress of all blocks while one is computed."""
    return lambda done, _, what: progress(number, total, what)
