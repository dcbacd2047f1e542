"""Generation: a source text, and one or more texts that a model should write for it."""

from dataclasses import dataclass

from mlpfusion.data.generation.webnlg import ADDED_TOKENS, EOS, SEEN, TASK_TOKENS, UNSEEN
from mlpfusion.data.task import Task


@dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """Texts to write for source texts.

    The model learns to write `end` after a text, None for its own end token, and stops at it and at any of `stops`.
    `added_tokens` are tokens of their own, which a tokenizer without them gets. `groups` are parts of the written
    splits that are scored by themselves. `segments` are the tokens that open segments; with any, a model gets the
    segment of every token.
    """

    metrics: tuple[str, ...] = ("bleu", "chrf", "ter", "rouge_l", "meteor_exact_stem", "bleu_protocol")
    end: str | None = None
    stops: tuple[str, ...] = ()
    added_tokens: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Generation."""
        return "generation"

    @property
    def written(self) -> tuple[str, ...]:
        """The splits that texts are written for: all but the first of several, which is there to choose on."""
        return self.splits[1:] or self.splits

    @property
    def reported(self) -> tuple[str, ...]:
        """The splits that texts are written for, with their groups."""
        return (*self.written, *(f"{split} {group}" for split in self.written for group in self.groups))


GENERATION: dict[str, GenerationTask] = {
    task.name: task
    for task in (
        GenerationTask(name="generation"),  # your own files
        GenerationTask(
            name="webnlg",
            metrics=("bleu_protocol", "bleu", "chrf", "ter", "rouge_l", "meteor_exact_stem"),
            splits=("validation", "test"),
            folder="webnlg",
            end=EOS,
            stops=TASK_TOKENS,
            added_tokens=ADDED_TOKENS,
            groups=(SEEN, UNSEEN),
        ),
    )
}
