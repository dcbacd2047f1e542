"""Writes and scores the texts of a task, and goes on after a kill."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel

from mlpfusion.data.generation.encode import EncodedGeneration, Prompts
from mlpfusion.data.generation.task import GenerationTask
from mlpfusion.generation.decode import Decoder, Written
from mlpfusion.generation.scores import ALL, GenerationScores, Signatures, score_groups
from mlpfusion.progress import Progress
from mlpfusion.storage.atomic import write_file


@dataclass(frozen=True)
class Generated:
    """Scores of the written texts by split, its groups beside it; `cut`: texts that reached the limit, by split."""

    scores: Mapping[str, GenerationScores]
    cut: Mapping[str, int]

    @property
    def signatures(self) -> Signatures:
        """Those of the whole first split; groups with fewer references differ in that alone."""
        return next(iter(self.scores.values())).signatures

    def numbers(self, task: GenerationTask) -> dict[str, dict[str, float]]:
        """The metrics of `task` by split, and METEOR where WordNet is installed."""
        found = {}
        for name, texts in self.scores.items():
            found[name] = {metric: float(getattr(texts, metric)) for metric in task.metrics}
            found[name] |= {} if texts.meteor is None else {"meteor": texts.meteor}
        return found


def generate_and_score(
    model: PreTrainedModel, data: EncodedGeneration, folder: Path, progress: Progress = lambda done, total, what: None
) -> Generated:
    """Lets `model` write a text for every prompt of `data`, and scores them.

    `folder` then holds SPLIT.jsonl: a line an entry, with source, text and references. While texts are missing their
    lines stand in SPLIT.unfinished.jsonl, and the same call goes on with those that are not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decoder = Decoder(data.tokenizer, data.stops, data.decoding)
    scores, cut = {}, {}
    for split, prompts in data.prompts.items():
        written = _written(model, decoder, prompts, folder / f"{split}.unfinished.jsonl", progress, split)
        for group, found in score_groups([one.text for one in written], prompts.entries).items():
            scores[split if group == ALL else f"{split} {group}"] = found
        cut[split] = sum(not one.ended for one in written)
        rows = zip(prompts.entries.entries, written, strict=True)
        lines = [json.dumps(asdict(entry) | {"text": one.text, "ended": one.ended}) + "\n" for entry, one in rows]
        write_file(folder / f"{split}.jsonl", "".join(lines).encode())
        (folder / f"{split}.unfinished.jsonl").unlink(missing_ok=True)
    return Generated(scores, cut)


def _written(
    model: PreTrainedModel, decoder: Decoder, prompts: Prompts, file: Path, progress: Progress, split: str
) -> list[Written]:
    """All texts in the order of the entries; every batch is a line in `file` once it is there."""
    done = {one.number: one for one in _read(file)}
    with file.open("w", encoding="utf-8") as out:  # without what a kill left of the last line
        out.writelines(_line(one) for one in done.values())
        out.flush()
        for batch in decoder.write(model, prompts, frozenset(done)):
            progress(len(done), len(prompts.ids), f"texts of {split}")
            done |= {one.number: one for one in batch}
            out.writelines(_line(one) for one in batch)
            out.flush()
    return [done[number] for number in range(len(prompts.ids))]


def _line(written: Written) -> str:
    return json.dumps(asdict(written)) + "\n"


def _read(file: Path) -> list[Written]:
    """The complete lines of a file; none if it is not there."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Written(**json.loads(line)) for line in lines if line.endswith("\n")]
