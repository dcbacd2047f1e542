"""The picture of the demo: accuracy and distance of the models while learning."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from mlpfusion.demo.train import Trained, binomial_error
from mlpfusion.report.numbers import FULL, method_colors
from mlpfusion.storage.atomic import staged_file

_METHODS = {FULL: FULL, "Fusion": "fusion", "NTKMatch": "ntk-match"}  # names of the demo -> names of the methods


def write_picture(results: Mapping[str, Trained], path: Path) -> None:
    """Writes a PNG: accuracy and distance from `full` over the steps.

    Bands are binomial standard errors.
    """
    colors = method_colors(list(_METHODS.values()))
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    accuracy, distance = figure.subplots(1, 2)
    for name, trained in results.items():
        color = colors[_METHODS[name]]
        line = {"color": color, "marker": "o", "markersize": 4.5, "linewidth": 1.8, "label": name}
        shares, count = trained.accuracy(), len(trained.labels)
        accuracy.plot(trained.steps, [100 * share for share in shares], **line)
        edges = [[100 * (share + side * binomial_error(share, count)) for share in shares] for side in (-1, 1)]
        accuracy.fill_between(trained.steps, *edges, color=color, alpha=0.13, linewidth=0)
        if name != FULL:
            distance.plot(trained.steps, trained.distance(results[FULL]), **line)
    num_authors = results[FULL].logits.shape[-1]
    accuracy.axhline(100 / num_authors, color="0.6", linestyle=":", linewidth=1.2, label="a guess")
    accuracy.set_ylabel("held-out sentences with the right author, %")
    accuracy.set_ylim(bottom=0)
    distance.set_ylabel("|logits - full model's| / |full model's|")
    distance.set_ylim(bottom=0)
    accuracy.set_title("How they learn", fontsize=11)
    distance.set_title("How far they are from the full model, from the cut on", fontsize=11)
    for axes in (accuracy, distance):
        axes.set_xlabel("fine-tuning step")
        axes.grid(linewidth=0.3)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    with staged_file(path) as staged:
        figure.savefig(staged, dpi=130, format="png")
