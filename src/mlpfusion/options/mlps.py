"""Options of where the MLPs of a model are."""

from dataclasses import dataclass

from mlpfusion.options.fields import option


@dataclass(frozen=True)
class MLPOptions:
    """A row file for a model whose MLPs are not found by themselves, and which of the stacks of layers are meant.

    Without `stacks` they are those that read text, or all where none does, and of these the experts where there are
    mixtures (`choose_stacks`).
    """

    architecture: str | None = option(
        None, "File that says where the MLPs are, if they are not found.", metavar="FILE", free=True
    )
    stacks: str | None = option(
        None,
        "text, vision, audio, experts, shared, dense, all or a pattern, as vision_tower.*; text if not given, and of "
        "a mixture its experts.",
        metavar="A[,B..]",
        free=True,
    )


USUAL_MLPS = MLPOptions()
