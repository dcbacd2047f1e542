"""The comparison as tables and as a chart, from rows alone."""

from pathlib import Path

import pytest

from mlpfusion.report.comparison import COLUMNS, comparison_table, labelled_rows, over_seeds, size_table
from mlpfusion.report.comparison_chart import chart_note, write_chart
from mlpfusion.report.numbers import mean_with_deviation
from mlpfusion.report.terminal.results import print_comparison


def record(methods=("fusion", "svd"), layers=(0, 1), seeds=(0, 1)):
    kernel = {"relative": 0.5, "absolute": 3e-5, "cosine": 0.9, "trace_ratio": 2.0, "alignment": 0.8}
    comparison = {"blocks": {"up": kernel}, "total": kernel, "without_down_bias": kernel}
    rows = [
        {
            "label": method,
            "seed": seed,
            "kind": "narrow",
            "size": "25.0 % non-zero",
            "original_parameters": 1181568,
            "parameters": 295680 + index,
            "nonzero_parameters": 295680,
            "error": {
                "path": f"encoder.layer.{layer}",
                "layer": layer,
                "output_error": 0.5 + layer + 0.1 * seed,
                "output_absolute": 4.0,
                "block_output_error": 0.25,
                "block_output_absolute": 2.0,
                "adam_kernel_error": 10.0**-index,
                "adam_trace_ratio": 2.0,
                "plain_kernel_error": 25.125,
                "adam": comparison,
                "plain": comparison,
                "authors": None,
            },
        }
        for index, method in enumerate(methods)
        for layer in layers
        for seed in seeds
    ]
    return {"model": "tiny", "rows": rows}


def test_a_table_has_means_and_deviations_over_the_seeds():
    table = comparison_table(record(), "output_error").splitlines()
    assert table[0] == "| method | encoder.layer.0 | encoder.layer.1 |"
    assert table[2] == "| fusion | 0.550 +- 0.071 | 1.550 +- 0.071 |"
    column = COLUMNS["adam_kernel_absolute"]
    assert over_seeds(labelled_rows(record()), "svd", "encoder.layer.1", column) == [3e-5, 3e-5]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([0.5], "0.500 +- 0.000"),
        ([0.0, 0.0], "0.000 +- 0.000"),
        ([3e-5, 3e-5], "3e-05 +- 0"),
        ([-2, 2], "0.000 +- 2.828"),
    ],
)
def test_small_numbers_keep_their_digits(numbers, text):
    assert mean_with_deviation(numbers) == text


def test_the_table_of_sizes_has_a_line_a_method():
    lines = size_table(record(seeds=(0,))).splitlines()
    assert lines[2:] == [
        "| fusion | narrow | 25.0 % non-zero | 295,680 | 295,680 | 1,181,568 |",
        "| svd | narrow | 25.0 % non-zero | 295,681 | 295,680 | 1,181,568 |",
    ]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_terminal_needs_a_hundred_columns_and_hides_no_number(seeds, capsys):
    print_comparison(record(("maintain-ntk-gradient", "fusion refine=False"), seeds=seeds))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for wanted in ("maintain-ntk-gradient", "fusion refine=False", "25.0 % non-zero", "25.125", "encoder.layer.1"):
        assert wanted in text
    assert ("0.600 (0.100)" in text) == (len(seeds) == 3)


@pytest.mark.parametrize("layers", [(0,), tuple(range(12))])
def test_the_chart_is_drawn_for_many_methods_and_layers(layers, tmp_path: Path):
    names = [f"a-method-with-a-name-{number}" for number in range(14)]
    (path,) = write_chart(record(names, layers), tmp_path / "chart.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_chart_that_is_not_drawn_is_told_with_the_cure(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("mlpfusion.extras.find_spec", lambda name: None)
    assert write_chart(record(["a-method"], (0,)), tmp_path / "chart.png") == []
    assert (
        chart_note("chart.png") == "chart.png was not drawn, that needs matplotlib: pip install 'mlpfusion[report]'\n"
    )


def test_a_chart_of_errors_that_are_zero_is_drawn_too(tmp_path: Path):
    data = record(seeds=(0,))
    for row in data["rows"]:
        row["error"] |= {"output_error": 0.0, "adam_kernel_error": 0.0}
    assert write_chart(data, tmp_path / "chart.png")
