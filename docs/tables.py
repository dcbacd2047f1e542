"""Writes the generated parts of the documents, from the code and from the records of the benchmarks.

    python docs/tables.py [--check] [--chart]

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. With --check nothing is written, and the
exit code is 1 if a part is out of date. With --chart the charts are drawn anew from the records.
"""

import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from census import (
    census_missed,
    census_summary,
    reach,
    reach_of_experts,
    trips_done,
    trips_missed,
    trips_summary,
    went_through,
)
from chart import draw_errors
from click.testing import CliRunner
from decoders import (
    cost_by_shape,
    cost_on_gpu,
    decoder_table,
    decoding_table,
    draw_perplexity,
    language_table,
    perplexity_table,
)
from exports import exports_table, gguf_perplexity_table
from inference_speed import inference_sizes, inference_table
from page import markdown
from recovery import draw_recovery, recovery_table
from small_gpt2 import pretraining_table
from small_mixture import draw_mixtures, mixture_experts, mixture_table, tasks_table
from streaming import streamed_summary, streaming_table
from verdict import paper_order, shares_of_tasks, verdict_on

from mlpfusion.cli import main as cli
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import CALIBRATED
from mlpfusion.report.cells import Table
from mlpfusion.report.comparison import comparison_table
from mlpfusion.report.comparison_chart import write_chart
from mlpfusion.report.dynamics import (
    FIRST,
    at_step,
    distance_table,
    first_steps,
    loss_table,
    write_dynamics_chart,
)
from mlpfusion.report.experiment import cost_table, score_table, share_table
from mlpfusion.report.methods import method_entries, option_entries
from mlpfusion.report.numbers import FULL
from mlpfusion.sites.table import ARCHITECTURES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
# Record of a comparison -> what its calibrated method is called beside that of the first.
COMPARISONS = {
    "minilm_comparison": "",
    "minilm_ntk_match_1024": ", 1,024 sentences",
    "minilm_ntk_match_random_tokens": ", random tokens",
}
# Record of training dynamics -> the same.
DYNAMICS = {"dynamics": "", "dynamics_pooling": "", "dynamics_1024": ", 1,024 sentences"}
# The same on seeds on which no option was chosen.
DYNAMICS_ON_NEW_SEEDS = {"dynamics_new_seeds": "", "dynamics_new_seeds_1024": ", 1,024 sentences"}
# Record of a small mixture -> what it is called.
MIXTURES = {"small_moe": "Mixtral, 8 experts of 176", "small_qwen3_moe": "Qwen3-MoE, 16 experts of 64"}
ERRORS = {"output_error": "output error", "adam_kernel_error": "Adam kernel error"}
MINILM, LINE = "all-MiniLM-L6-v2, last 4 of 6 layers", 120


def read_result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def labelled_rows(records: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of several records, the labels of the calibrated methods of each with its suffix."""
    calibrated = {method_name(kind) for kind in CALIBRATED}
    return [
        row | {"label": row["label"] + suffix * (row["method"] in calibrated)}
        for name, suffix in records.items()
        for row in read_result(name)["rows"]
    ]


def comparison() -> dict[str, Any]:
    """The rows of all comparisons on MiniLM as one record."""
    return {"rows": labelled_rows(COMPARISONS)}


def errors(column: str) -> Callable[[], str]:
    """Method x layer, mean and standard deviation over the seeds, of one number of the comparison."""
    return lambda: comparison_table(comparison(), column)


def llama_errors(column: str) -> Callable[[], str]:
    """The same for the tiny Llama."""
    return lambda: comparison_table(read_result("stories260k_comparison"), column)


def means_over_layers() -> dict[str, dict[str, float]]:
    """Method -> error -> its mean over the layers and seeds of the comparison on MiniLM, the best output first."""
    rows = comparison()["rows"]
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["label"] for row in rows):
        own = [row["error"] for row in rows if row["label"] == name]
        found[name] = {column: statistics.mean(error[column] for error in own) for column in ERRORS}
    return dict(sorted(found.items(), key=lambda item: item[1]["output_error"]))


def mean_errors() -> str:
    """Method x error, mean over the layers and seeds, and the same over that of Fusion."""
    found = means_over_layers()
    lines = [
        [name, *(f"{means[column]:.3f} ({means[column] / found['fusion'][column]:.2f}x)" for column in ERRORS)]
        for name, means in found.items()
    ]
    return markdown(["method, mean over the six layers", *ERRORS.values()], lines)


def before_after() -> str:
    """Parameters, bytes and seconds before and after the cut of the demo."""
    result = read_result("minilm_cut")
    step = next(
        row
        for row in read_result("training_step")["rows"]
        if (row["model"], row["dropout"], row["sequence"]) == (MINILM, 0.1, 128)
    )
    sentences, length = result["batch_shape"]
    rows = [
        [name, format(before, form), format(after, form), f"{after / before:.2f}"]
        for name, (before, after), form in [
            ("parameters", result["parameters"], ",d"),
            ("bytes", result["bytes"], ",d"),
            (f"forward pass, {sentences} x {length} tokens, seconds", result["forward_seconds"], ".2f"),
            ("training step, 32 x 128 tokens, seconds", step["seconds"], ".2f"),
        ]
    ]
    return markdown([f"{MINILM} at 25 % (CPU)", "before", "after", "ratio"], rows)


def mean_and_error(numbers: list[float]) -> str:
    """A share in percent with its standard error."""
    error = statistics.stdev(numbers) / len(numbers) ** 0.5
    return f"{statistics.mean(numbers):.1f} % ({error:.1f})"


def headlines() -> str:
    """The results in four lines."""
    found, ratios = means_over_layers(), {}
    for column in ERRORS:
        ratios[column] = found["ntk-match"][column] / found["fusion"][column]
        others = [means[column] for name, means in found.items() if not name.startswith("ntk-match")]
        assert found["ntk-match"][column] < min(others), f"ntk-match is no longer first in {column}"
    distances = over_fusion(labelled_rows(DYNAMICS) + labelled_rows(DYNAMICS_ON_NEW_SEEDS))
    early, late = (distances[what]["ntk-match"] for what in distances)
    tables = [read_result(f"minilm/{name}") for name in ("minilm-table2", "minilm-table6")]
    scores = {name: mean_and_error(shares_of_tasks(tables, name)) for name in ("fusion", "ntk-match")}
    story = read_result("stories260k_cut")
    perplexity = {row["method"]: row["perplexity"] for row in story["rows"] if row["keep_ratio"] == 0.8}
    output, kernel = ratios.values()
    full, matched, fused = story["perplexity"], perplexity["ntk-match"], perplexity["fusion"]
    return "\n".join(
        [
            f"- Errors of a MiniLM layer at 25 %, `ntk-match` over `fusion`: output {output:.2f}, "
            f"Adam kernel {kernel:.2f}.",
            f"- Training, distance of the logits from the full model's: {early:.2f} of that of `fusion` in ten steps, "
            f"{late:.2f} after 100.",
            f"- Scores of four GLUE tasks, over the full model's (standard error): `fusion` {scores['fusion']}, "
            f"`ntk-match` {scores['ntk-match']}.",
            f"- A tiny Llama at 80 % of its width: perplexity {full:.1f} -> {matched:.1f} by `ntk-match` on text, "
            f"{fused:.1f} by `fusion`, without any.",
        ]
    )


def dynamics() -> str:
    """Method x step: distance of the logits' change from the full model's, of all records; then the training loss."""
    result = read_result("dynamics")
    return f"{distance_table(result | {'rows': labelled_rows(DYNAMICS)})}\n\n{loss_table(result)}"


def over_fusion(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """When -> method -> its mean distance from the full model's path, over that of Fusion."""
    record = {"rows": rows, "measured_at": read_result("dynamics")["measured_at"]}
    names = [name for name in dict.fromkeys(row["label"] for row in rows) if name != FULL]
    found = {}
    for what, number in {f"mean of 1 to {FIRST}": first_steps, "step 100": partial(at_step, step=100)}.items():
        means = {name: statistics.mean(number(record, name=name)) for name in names}
        found[what] = {name: mean / means["fusion"] for name, mean in means.items()}
    return found


def dynamics_over_fusion() -> str:
    """NTKMatch x seeds: its distance over that of Fusion, on the seeds that chose its options, on new ones, on all."""
    chosen_on, new = labelled_rows(DYNAMICS), labelled_rows(DYNAMICS_ON_NEW_SEEDS)
    names = [name for name in dict.fromkeys(row["label"] for row in new) if name not in (FULL, "fusion")]
    parts = {
        ", ".join(map(str, sorted({row["seed"] for row in rows}))): over_fusion(rows)
        for rows in (chosen_on, new, chosen_on + new)
    }
    columns = {
        f"{what}, seeds {seeds}": part[what] for what in next(iter(parts.values())) for seeds, part in parts.items()
    }
    lines = [[name, *(f"{column[name]:.2f}x" for column in columns.values())] for name in names]
    return markdown(["distance over Fusion's", *columns], lines)


def small_mixtures() -> dict[str, dict[str, Any]]:
    """The perplexity of all small mixtures, by what they are called."""
    return {title: read_result(name) for name, title in MIXTURES.items()}


def kmeans() -> str:
    """Data x method: inertia and seconds, medians over the seeds."""
    result = read_result("kmeans")
    names = list(dict.fromkeys(row["method"] for row in result["rows"]))
    cells: dict[str, list[str]] = {}
    for row in result["rows"]:
        inertia = "" if row["inertia"] is None else f"{row['inertia']:,.0f}, "
        cells.setdefault(row["data"], []).append(f"{inertia}{row['seconds']:.2f} s")
    return markdown(["inertia, time", *names], [[data, *values] for data, values in cells.items()])


def fine_tuning(table: Callable[[dict[str, Any]], Table], name: str) -> Callable[[], str]:
    """A table of the record of an experiment on MiniLM."""
    return lambda: table(read_result(f"minilm/{name}")).markdown()


def verdict() -> str:
    """What is claimed of the scores after fine-tuning, on the tasks of Tables 2 and 6."""
    return verdict_on([read_result(f"minilm/{name}") for name in ("minilm-table2", "minilm-table6")])


def roberta_cost() -> str:
    """Method x seconds on a block of RoBERTa-base's size."""
    result = read_result("roberta_cost")
    rows = [
        [f"`{row['method']}`", row["size"], f"{row['nonzero_parameters']:,}", f"{row['compress_seconds']:.1f}"]
        for row in sorted(result["rows"], key=lambda row: row["compress_seconds"])
    ]
    return markdown(["method", "block", "trained parameters", "seconds"], rows)


def training_step() -> str:
    """Model x precision x dropout x sequence: seconds of a step of both models, and how near to the FLOPs."""
    result = read_result("training_step")
    rows, header = [], [f"model, batch of {result['batch_size']}", "dropout", "sequence", "full, s", "fused, s"]
    for row in result["rows"]:
        name = row["model"] + ("" if row["device"] == "cpu" else f", {result['gpu']}, {row['precision']}")
        speedups = [
            f"{row['measured_speedup']:.2f}x",
            f"{row['allowed_speedup']:.2f}x",
            f"{100 * row['reached']:.0f} %",
        ]
        peaks = [f"{peak / 2**20:,.0f}" for peak in row["peak_bytes"]]
        seconds = [f"{one:.3g}" for one in row["seconds"]]
        rows.append([name, f"{row['dropout']:g}", str(row["sequence"]), *seconds, *speedups, *peaks])
    return markdown([*header, "speed-up", "FLOPs allow", "reached", "peak full, MiB", "fused, MiB"], rows)


def methods() -> str:
    """The table of methods, each with the first line of its config's docstring."""
    suffixes = {"nothing": "", "a task": ", on the task"}
    rows = []
    for entry in method_entries():
        kind, summary = entry.kind + suffixes.get(entry.needs, ", calibrated"), entry.summary.replace("|", "\\|")
        rows.append([f"`{entry.name}`", f"`{entry.config.__name__}`", kind, summary])
    return markdown(["`--method`", "Python", "kind", "what it does"], rows)


def method_options() -> str:
    """The options of every method that has some, those that one sentence explains in one row."""
    parts = []
    for entry in method_entries():
        sentences: dict[str, list[Any]] = {}
        for option in option_entries(entry.config):
            sentences.setdefault(option.sentence, []).append(option)
        rows = [
            [", ".join(f"`{one.name}`" for one in options), ", ".join(f"`{one.default}`" for one in options), sentence]
            for sentence, options in sentences.items()
        ]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        if rows:
            parts.append(f"### `{entry.name}`\n\n{markdown(['option', 'default', 'what it does'], rows)}")
    return "\n\n".join(parts)


def architectures() -> str:
    """The model types of the table, and how many others are found."""
    names = ", ".join(f"`{model_type}`" for model_type in ARCHITECTURES)
    census = read_result("census")
    found, dense = reach(census)
    mixed, mixtures = reach_of_experts(census)
    done, tried = went_through(read_result("round_trips"))
    others = (
        f"In others MLPs are found by their shapes: {found} of {dense}, and the [experts](docs/concepts/experts.md) of "
        f"{mixed} of {mixtures}; {done} of {tried} tiny models were cut and loaded ([list](docs/architectures.md))."
    )
    return textwrap.fill(f"{names}. {others}", LINE, break_on_hyphens=False)


def command_help() -> str:
    """What `--help` prints, for every command."""
    parts = []
    for command in ([], *([name] for name in cli.commands)):
        text = CliRunner().invoke(cli, [*command, "--help"], prog_name="mlpfusion", terminal_width=100).output
        parts.append(f"## {' '.join(['mlpfusion', *command])}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "architectures": architectures,
    "command-help": command_help,
    "before-after": before_after,
    "census": lambda: census_summary(read_result("census")),
    "census-missed": lambda: census_missed(read_result("census")),
    "decoding": lambda: decoding_table(read_result("decoding")),
    "decoder": lambda: decoder_table(read_result("stories260k_cut")),
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
