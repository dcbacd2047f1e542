"""The table of task methods, which learn from labelled task data what to keep: config type -> function.

A method is one file with a frozen config and a function `compress(job, config)`, and one row here. It may do to the
model of the job what it likes: that is a copy. What it hands back, one outcome a site, is then put into the model.
"""

from collections.abc import Callable
from typing import Any

from mlpfusion.kinds.outcome import Outcome
from mlpfusion.methods import method_name
from mlpfusion.methods.on_task import flop, gem_miner, lth, moefication
from mlpfusion.methods.on_task.job import TaskJob as TaskJob

TASK_METHODS: dict[type, Callable[[TaskJob, Any], list[Outcome]]] = {
    lth.LTH: lth.compress,
    gem_miner.GemMiner: gem_miner.compress,
    flop.FLOP: flop.compress,
    moefication.MoEfication: moefication.compress,
}

# What becomes of a block.
TASK_KINDS: dict[type, str] = {
    lth.LTH: "masked",
    gem_miner.GemMiner: "masked",
    flop.FLOP: "low-rank",
    moefication.MoEfication: "routed",
}

TASK_METHOD_TYPES: dict[str, type] = {method_name(method): method for method in TASK_METHODS}
