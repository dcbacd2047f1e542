"""What compression costs and saves in parameters, bytes and seconds."""

from parts.page import MINILM, markdown, read_result


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


def kmeans() -> str:
    """Data x method: inertia and seconds, medians over the seeds."""
    result = read_result("kmeans")
    names = list(dict.fromkeys(row["method"] for row in result["rows"]))
    cells: dict[str, list[str]] = {}
    for row in result["rows"]:
        inertia = "" if row["inertia"] is None else f"{row['inertia']:,.0f}, "
        cells.setdefault(row["data"], []).append(f"{inertia}{row['seconds']:.2f} s")
    return markdown(["inertia, time", *names], [[data, *values] for data, values in cells.items()])


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
