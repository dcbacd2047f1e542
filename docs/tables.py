"""Writes the generated parts of the documents, from the code and from the records of the benchmarks.

    python docs/tables.py [--check] [--chart]

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. With --check nothing is written, and the
exit code is 1 if a part is out of date. With --chart the charts are drawn anew from the records.
"""

import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from parts.base_size import base_size_claims, base_size_tables, draw_base_size
from parts.census import census_missed, census_summary, trips_done, trips_missed, trips_summary
from parts.comparison import comparison, draw_errors, errors, llama_errors, mean_errors, means_over_layers
from parts.costs import before_after, kmeans, roberta_cost, training_step
from parts.decoders import (
    cost_by_shape,
    cost_on_gpu,
    decoder_table,
    decoding_table,
    draw_perplexity,
    language_table,
    perplexity_table,
)
from parts.deploying import paths_table, paths_versions
from parts.dsee import dsee_claims, dsee_stages
from parts.dynamics import dynamics, dynamics_over_fusion
from parts.exports import exports_table, gguf_perplexity_table
from parts.finetune import finetune_table
from parts.generation import pretraining_table, webnlg_examples, webnlg_order, webnlg_table
from parts.headlines import headlines
from parts.inference import inference_sizes, inference_table
from parts.page import IMAGES, ROOT, read_result
from parts.recovery import draw_recovery, recovery_table
from parts.reference import architectures, command_help, method_options, methods
from parts.small_mixture import (
    MIXTURES,
    draw_mixtures,
    mixture_experts,
    mixture_table,
    small_mixtures,
    tasks_table,
)
from parts.streaming import streamed_summary, streaming_table
from parts.verdict import paper_order, verdict_on
from parts.width import width_limit_table

from mlpfusion.report.cells import Table
from mlpfusion.report.comparison_chart import write_chart
from mlpfusion.report.dynamics import distance_table, write_dynamics_chart
from mlpfusion.report.grid.tables import cost_table, score_table, share_table

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def fine_tuning(table: Callable[[dict[str, Any]], Table], name: str) -> Callable[[], str]:
    """A table of the record of an experiment on MiniLM."""
    return lambda: table(read_result(f"minilm/{name}")).markdown()


def verdict() -> str:
    """What is claimed of the scores after fine-tuning, on the tasks of Tables 2 and 6."""
    return verdict_on([read_result(f"minilm/{name}") for name in ("minilm-table2", "minilm-table6")])


PARTS: dict[str, Callable[[], str]] = {
    "architectures": architectures,
    "command-help": command_help,
    "base-size-claims": lambda: base_size_claims(read_result("mpnet/mpnet-recovery")),
    "base-size": lambda: base_size_tables(read_result("mpnet/mpnet-recovery")),
    "before-after": before_after,
    "census": lambda: census_summary(read_result("census")),
    "census-missed": lambda: census_missed(read_result("census")),
    "deploy-paths": lambda: paths_table(read_result("deploy_paths")),
    "deploy-paths-versions": lambda: textwrap.fill(paths_versions(read_result("deploy_paths")), 140),
    "decoding": lambda: decoding_table(read_result("decoding")),
    "decoder": lambda: decoder_table(read_result("stories260k_cut")),
    "dsee-claims": lambda: dsee_claims(read_result("minilm/minilm-dsee")),
    "dsee-stages": lambda: dsee_stages(read_result("minilm/minilm-dsee"), read_result("minilm/minilm-dsee-narrow")),
    "dynamics": dynamics,
    "dynamics-over-fusion": dynamics_over_fusion,
    "dynamics-of-smollm2": lambda: distance_table(read_result("smollm2_dynamics")),
    "dynamics-of-decoder": lambda: distance_table(read_result("stories260k_dynamics")),
    "kernel-errors": errors("adam_kernel_error"),
    "inference": lambda: inference_table(read_result("inference")),
    "inference-sizes": lambda: inference_sizes(read_result("inference")),
    "layer-output-errors": errors("block_output_error"),
    "llama-kernel-errors": llama_errors("adam_kernel_error"),
    "llama-output-errors": llama_errors("output_error"),
    "exports": lambda: exports_table(read_result("exports")),
    "gguf-perplexity": lambda: gguf_perplexity_table(read_result("gguf_perplexity")),
    "finetune": lambda: finetune_table(read_result("finetune")),
    "headlines": headlines,
    "mean-errors": mean_errors,
    "method-options": method_options,
    "kmeans": kmeans,
    "language": lambda: language_table(read_result("smollm2_cut")),
    "methods": methods,
    "paper-order": lambda: paper_order(read_result("minilm/minilm-table2")),
    "streamed-types": lambda: streamed_summary(read_result("streamed_types")),
    "streaming": lambda: streaming_table(read_result("streaming")),
    "small-gpt2": lambda: pretraining_table(read_result("small_gpt2")),
    "small-moe": lambda: mixture_table(read_result("small_moe"), MIXTURES["small_moe"]),
    "small-moe-experts": lambda: mixture_experts(small_mixtures()),
    "small-moe-tasks": lambda: tasks_table(read_result("small_moe_tasks"), MIXTURES["small_moe"]),
    "small-qwen3-moe": lambda: mixture_table(read_result("small_qwen3_moe"), MIXTURES["small_qwen3_moe"]),
    "small-qwen3-moe-tasks": lambda: tasks_table(read_result("small_qwen3_moe_tasks"), MIXTURES["small_qwen3_moe"]),
    "ntk-match-cost": lambda: cost_by_shape(read_result("ntk_match_cost")),
    "ntk-match-cost-on-gpu": lambda: textwrap.fill(cost_on_gpu(read_result("ntk_match_cost")), 140),
    "perplexity": lambda: perplexity_table(read_result("smollm2_perplexity"), "perplexity", "SmolLM2-135M"),
    "perplexity-of-middle-layers": lambda: perplexity_table(
        read_result("smollm2_perplexity"), "perplexity_of_middle_layers", "SmolLM2-135M"
    ),
    "perplexity-of-stories": lambda: perplexity_table(
        read_result("stories260k_perplexity"), "perplexity", "stories260K"
    ),
    "recovery": lambda: recovery_table(read_result("stories260k_recovery"), "stories260K"),
    "recovery-of-smollm2": lambda: recovery_table(read_result("smollm2_recovery"), "SmolLM2-135M"),
    "roberta-cost": roberta_cost,
    "table2-scores": fine_tuning(score_table, "minilm-table2"),
    "table2-shares": fine_tuning(share_table, "minilm-table2"),
    "table2-cost": fine_tuning(cost_table, "minilm-table2"),
    "table5-scores": fine_tuning(score_table, "minilm-table5"),
    "table5-shares": fine_tuning(share_table, "minilm-table5"),
    "table6-scores": fine_tuning(score_table, "minilm-table6"),
    "table6-shares": fine_tuning(share_table, "minilm-table6"),
    "output-errors": errors("output_error"),
    "plain-kernel-errors": errors("plain_kernel_error"),
    "training-step": training_step,
    "verdict": verdict,
    "width-limit": lambda: width_limit_table(read_result("width_limit")),
    "webnlg-bleu": lambda: webnlg_table(read_result("small_table3"), ("bleu_protocol", "chrf")),
    "webnlg-others": lambda: webnlg_table(read_result("small_table3"), ("meteor_exact_stem", "ter")),
    "webnlg-order": lambda: textwrap.fill(webnlg_order(read_result("small_table3")), 140),
    "webnlg-examples": lambda: webnlg_examples(read_result("small_table3_examples")),
    "trips": lambda: trips_summary(read_result("round_trips")),
    "trips-done": lambda: textwrap.fill(trips_done(read_result("round_trips")), 140, break_on_hyphens=False),
    "trips-missed": lambda: trips_missed(read_result("round_trips")),
}


def generate(text: str) -> str:
    """The document with every generated part made anew."""
    for name in re.findall(r"<!-- begin (\S+) -->", text):
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        assert found, f"{end} is missing"
        text = f"{head}{begin}\n{PARTS[name]()}\n{end}{tail}"
    return text


def main() -> None:
    if "--chart" in sys.argv:
        write_chart(comparison(), IMAGES / "minilm_comparison.png")
        write_dynamics_chart(read_result("dynamics"), IMAGES / "dynamics.png")
        draw_errors(means_over_layers(), IMAGES / "errors.png")
        for model in ("stories260k", "smollm2"):
            draw_recovery(read_result(f"{model}_recovery"), IMAGES / f"{model}_recovery.png")
        draw_perplexity(read_result("smollm2_perplexity"), IMAGES / "smollm2_perplexity.png")
        draw_base_size(read_result("mpnet/mpnet-recovery"), IMAGES / "mpnet_recovery.png")
        draw_mixtures(small_mixtures(), IMAGES / "small_moe.png")
    stale = []
    for path in DOCUMENTS:
        old = path.read_text(encoding="utf-8")
        new = generate(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(("out of date, run `make docs`: " if "--check" in sys.argv else "written: ") + ", ".join(stale))
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
