"""Language modelling: plain texts, of which a model predicts every token."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlpfusion.data.task import Task, TaskData


@dataclass(frozen=True, kw_only=True)
class LanguageTask(Task):
    """Prediction of the next token of plain texts, packed into windows; `hub` is a data set and its config."""

    metrics: tuple[str, ...] = ("perplexity", "loss")
    hub: tuple[str, str] | None = None

    @property
    def kind(self) -> str:
        """Language modelling."""
        return "language-modelling"


@dataclass(frozen=True)
class Texts:
    """Plain texts, in their order."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, indices: Sequence[int]) -> "Texts":
        """Picks the texts at `indices`, in their order."""
        return Texts(tuple(self.texts[index] for index in indices))


LanguageData = TaskData[LanguageTask, Texts]

LANGUAGE: dict[str, LanguageTask] = {
    task.name: task
    for task in (
        LanguageTask(name="language-modelling"),  # your own files
        LanguageTask(
            name="wikitext2",
            splits=("validation", "test"),
            folder="lm/wikitext-2",
            hub=("Salesforce/wikitext", "wikitext-2-v1"),
        ),
    )
}
