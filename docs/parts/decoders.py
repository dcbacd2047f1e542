"""The records of cut language models as tables and a chart."""

from pathlib import Path
from statistics import median
from typing import Any

from mlpfusion.report.numbers import method_colors
from parts.page import markdown

TOKENS, STEPS = 32_768, 512  # of a calibration of 256 windows; of its refinement
GPU_OPERATIONS = 67e12  # a second in fp32 without tensor cores: data sheet of NVIDIA's H200 SXM
TITLES = {"ntk-match refine_epochs=0 match=none": "ntk-match, refit alone"}
# Methods of the chart with their styles: solid where they see text.
DRAWN = {
    ("ntk-match, refit alone", "WikiText-2 train"): "o-",
    ("ntk-match, refit alone", "its own text"): "s-",
    ("ntk-match, refit alone", "books"): "^-",
    ("whitened-svd", "WikiText-2 train"): "o-",
    ("flap", "WikiText-2 train"): "o-",
    ("nirvana", "WikiText-2 train"): "o-",
    ("optipfair", "nothing"): "o--",
    ("fusion", "nothing"): "o--",
    ("svd", "nothing"): "o--",
}
Rows = list[dict[str, Any]]


def decoder_table(record: dict[str, Any]) -> str:
    """Method x share of the neurons: perplexity of a small Llama, before and after distillation."""
    rows = [["the original", "100 %", f"{record['parameters']:,}", f"{record['perplexity']:.2f}", "-"]]
    rows += [
        [
            row["method"],
            _percent(row["keep_ratio"]),
            f"{row['parameters']:,}",
            f"{row['perplexity']:.2f}",
            f"{row['perplexity_distilled']:.2f}",
        ]
        for row in record["rows"]
    ]
    return markdown(["stories260K, all layers", "neurons kept", "parameters", "perplexity", "distilled"], rows)


def decoding_table(record: dict[str, Any]) -> str:
    """Job x form of the model: tokens per second, and how many times those of the full model."""
    jobs = {"writing": "writing, texts at once:", "training": "training, windows a step:"}
    rows = []
    for row in record["rows"]:
        speeds, over = row["tokens_per_second"], row["over_full"]
        cells = [f"{_number(speeds[form])} ({over[form]:.2f}x)" for form in speeds if form != "full"]
        rows.append([row["model"], f"{jobs[row['kind']]} {row['batch']}", _number(speeds["full"]), *cells])
    return markdown(["tokens per second", "job", "full", "a quarter of the width", "the same, folded"], rows)


def language_table(record: dict[str, Any]) -> str:
    """Method x share of the neurons: perplexity of SmolLM2 after the cut, time and memory of the cut."""
    head = ["SmolLM2-135M", "sees", "tokens", "kept", "parameters", "perplexity", "moved", "processor minutes"]
    original = ["the original", *"--", "100 %", f"{record['parameters']:,}", _number(record["result"]["perplexity"])]
    rows = [
        [
            " ".join([row["method"], row["options"]]).strip(),
            row["sees"],
            f"{row['calibration_tokens']:,}" if row["calibration_tokens"] else "-",
            _percent(row["keep_ratio"]),
            f"{row['parameters']:,}",
            _number(row["result"]["perplexity"]),
            f"{row['divergence']:.2f}",
            f"{row['processor_seconds'] / 60:.1f}",
            f"{row['peak_bytes'] / 1e9:.1f}",
        ]
        for row in record["rows"]
    ]
    return markdown([*head, "peak GB"], [[*original, *"---"], *rows])


def perplexity_table(record: dict[str, Any], column: str, model: str) -> str:
    """Method x share of the neurons, the best at 80 % first; a method with seeds has its median."""
    sizes = sorted({row["keep_ratio"] for row in record["rows"]}, reverse=True)
    found = _by_start(record["rows"], column)
    order = sorted(found, key=lambda start: found[start].get(0.8, float("inf")))
    rows = [
        [*start, *(_number(found[start][size]) if size in found[start] else "-" for size in sizes)] for start in order
    ]
    return markdown([model, "sees", *map(_percent, sizes)], rows)


def draw_perplexity(record: dict[str, Any], path: Path) -> None:
    """Draws perplexity against the share that is kept, of all layers and of the middle ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colors = method_colors(list(dict.fromkeys(name.partition(",")[0] for name, _ in DRAWN)))
    first, last = record["middle"]
    columns = {"perplexity": "all layers", "perplexity_of_middle_layers": f"layers {first} to {last}"}
    for axes, (column, title) in zip(panels, columns.items(), strict=True):
        found = _by_start(record["rows"], column)
        for start, style in DRAWN.items():
            points = sorted(found.get(start, {}).items())
            if points:
                shares, numbers = zip(*points, strict=True)
                name = ", on ".join(start).removesuffix(", on nothing")
                color = colors[start[0].partition(",")[0]]
                axes.plot([100 * share for share in shares], numbers, style, color=color, label=name, markersize=4)
        axes.axhline(record["perplexity"], color="black", linewidth=1, label="the original")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set(yscale="log", xlabel="% of the width kept", ylim=(20, 1e6), xlim=(95, 20))
        axes.grid(linewidth=0.3)
    panels[0].set_ylabel("perplexity, WikiText-2 test")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def cost_by_shape(record: dict[str, Any]) -> str:
    """Processor seconds of the stages on one block, and minutes of all blocks of the model, for a whole calibration."""
    head = ["shape of", "hidden / neurons", "two products", "choice, refit", "over the products", "refinement", "match"]
    head += ["all layers, refit", "all stages"]
    rows = []
    for row in record["rows"]:
        floor, refit, *later = _seconds_by_stage(row)
        shape = f"{row['hidden_size']:,} / {row['num_neurons']:,}" + (", gated" if row["gated"] else "")
        ratio, whole = f"{refit / floor:.1f}x", [_hours(row["layers"] * one) for one in (refit, refit + sum(later))]
        first = [row["shape"], shape, _seconds(floor), _seconds(refit), ratio, *map(_seconds, later)]
        rows.append([*first, f"{row['layers']} x = {whole[0]}", whole[1]])
    return markdown(head, rows)


def cost_on_gpu(record: dict[str, Any]) -> str:
    """What the largest shape would take on a GPU: arithmetic from its operations and a data sheet, nothing measured."""
    row = max(record["rows"], key=lambda row: row["hidden_size"] * row["num_neurons"])
    floor, refit, *later = _seconds_by_stage(row)
    maps = 2 if row["gated"] else 1
    operations = 2 * TOKENS * row["num_neurons"] * (maps * row["hidden_size"] + row["num_neurons"])
    times = GPU_OPERATIONS * floor / operations
    products, first, every = (row["layers"] * one / times for one in (floor, refit, refit + sum(later)))
    return (
        f"On one GPU, computed and not run: the two products of all {row['layers']} layers of {row['shape']} are "
        f"{row['layers'] * operations / 1e12:.0f} TFLOP, {products:.0f} s at the {GPU_OPERATIONS / 1e12:.0f} TFLOP/s "
        f"in fp32 of an H200's data sheet, {times:.0f} times what a core did here. If all else keeps its share, "
        f"choice and refit take {first:.0f} s, all stages {_hours(every)}. A GPU will not reach its peak in all of it, "
        "and calibration data and the model's own passes come on top."
    )


def _seconds_by_stage(row: dict[str, Any]) -> tuple[float, float, float, float]:
    """Of a block for a whole calibration: the two products, choice and refit, refinement, match."""
    seconds, share = row["seconds"], TOKENS / row["tokens"]
    return (
        share * (seconds["activations"] + seconds["gram_product"]),
        share * seconds["moments"] + seconds["refit"],
        STEPS * seconds["refinement_step"],
        seconds["kernel_of_original"] + seconds["match"],
    )


def _by_start(rows: Rows, column: str) -> dict[tuple[str, str], dict[float, float]]:
    """(method, what it sees) -> share kept -> median over the seeds."""
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        start = TITLES.get(row["method"], row["method"]), row["sees"]
        found.setdefault(start, {}).setdefault(row["keep_ratio"], []).append(row[column])
    return {start: {size: median(numbers) for size, numbers in sizes.items()} for start, sizes in found.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(perplexity: float) -> str:
    return f"{perplexity:,.1f}" if perplexity < 1000 else f"{perplexity:,.0f}"


def _hours(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _seconds(number: float) -> str:
    return f"{number:.1f} s" if number < 100 else f"{number:,.0f} s"
