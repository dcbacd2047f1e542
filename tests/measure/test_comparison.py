"""`mlpfusion compare` and `mlpfusion measure` on the real checkpoint and on tiny models."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import call, refused
from pico import HIDDEN, WIDTH, pico_inputs, pico_model
from tiny_task import save_checkpoint

import mlpfusion
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.errors import InputError
from mlpfusion.measure import comparison
from mlpfusion.measure.approximation import Probe, block_errors, references
from mlpfusion.measure.comparison import compare_methods
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import CALIBRATED, ONE_SHOT
from mlpfusion.sites.table import ARCHITECTURES

SENTENCES = (Path(mlpfusion.__file__).parent / "demo" / "four_authors.jsonl.gz", "--column", "sentence")


def compare(model, methods, **options):
    defaults = {"layers": "1", "keep_ratio": 0.25, "seeds": [0]}
    return compare_methods(model, methods, [pico_inputs("bert")], **(defaults | options))


def test_a_cut_that_keeps_everything_has_no_error():
    (row,) = compare(pico_model("bert"), [mlpfusion.NeuronPruning()], keep_ratio=1.0)
    assert row.error.output_error == 0
    assert row.error.adam_kernel_error < 1e-6
    assert row.error.plain_kernel_error < 1e-6
    assert row.error.adam_trace_ratio == pytest.approx(1)


def test_every_method_layer_and_seed_gets_a_row_and_the_model_stays():
    model = pico_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    methods = [mlpfusion.Fusion(), mlpfusion.FoldedFusion(), mlpfusion.RandomNeurons()]
    rows = compare(model, methods, layers="0,2", seeds=[0, 1])
    assert [(r.seed, r.error.layer, r.method) for r in rows] == [
        (seed, layer, name)
        for seed in (0, 1)
        for layer in (0, 2)
        for name in ("fusion", "folded-fusion", "random-neurons")
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "mlp_fusion")


def test_folded_and_stand_alone_p_have_one_output_error_and_two_kernel_errors():
    alone, folded = compare(pico_model("bert"), [mlpfusion.Fusion(), mlpfusion.FoldedFusion()])
    assert folded.error.output_error == pytest.approx(alone.error.output_error, rel=1e-4)
    before, after = alone.error.adam.blocks, folded.error.adam.blocks
    assert before["up"].relative == pytest.approx(after["up"].relative, rel=1e-3)
    assert before["down"].relative != pytest.approx(after["down"].relative, rel=1e-2)


def test_a_deterministic_method_differs_between_seeds_by_the_head_only():
    first, second = compare(pico_model("bert"), [mlpfusion.NeuronPruning()], seeds=[0, 1])
    assert first.error.output_error == second.error.output_error
    assert first.error.adam.total.absolute != second.error.adam.total.absolute


def test_a_classification_model_is_measured_with_its_own_head():
    from transformers import AutoModelForSequenceClassification

    model = pico_model("bert", AutoModelForSequenceClassification)
    rows = [compare(copy.deepcopy(model), [mlpfusion.NeuronPruning()], seeds=[seed])[0] for seed in (0, 1)]
    assert rows[0].error == rows[1].error
    assert compare(model, [mlpfusion.NeuronPruning()], scalar="prob0")[0].error != rows[0].error


def test_all_compressed_blocks_are_measured_in_place():
    model = pico_model("gpt2")
    small = copy.deepcopy(model)
    mlpfusion.compress(small, mlpfusion.Fusion(), layers="last:2", width=14)
    row, batches = ARCHITECTURES["gpt2"], [pico_inputs("gpt2")]
    sites = [site for site in mlpfusion.sites.sites.find_sites(model, row) if site.layer > 0]
    errors = block_errors(references(model, sites, batches, Probe()), small, row, batches, Probe())
    assert [error.path for error in errors] == ["h.1", "h.2"]
    assert all(0 < error.output_error < 10 for error in errors)
    with pytest.raises(InputError, match="`scalar` must be one of logit, prob0, loss, got 'accuracy'"):
        Probe("accuracy")


WITHOUT_TEXTS = [method for method in ONE_SHOT if method not in CALIBRATED]


@pytest.mark.slow
def test_every_kind_is_compared_at_one_budget():
    model = pico_model("bert")
    rows = {row.method: row for row in compare(model, [method() for method in WITHOUT_TEXTS])}
    assert list(rows) == [method_name(method) for method in WITHOUT_TEXTS]
    assert {rows[name].kind for name in rows} == {"narrow", "low-rank", "masked"}
    biases = HIDDEN + WIDTH
    for name, row in rows.items():
        before = 2 * HIDDEN * WIDTH + biases
        assert row.original_parameters == before
        assert 0.2 * before < row.nonzero_parameters <= 0.25 * before + biases, name
        assert (row.parameters == before) == (row.kind == "masked")
        assert (row.rank == 5) == (row.kind == "low-rank")
        assert set(row.error.adam.blocks) == {"up", "up_bias", "down", "down_bias"}
        assert 0 < row.error.adam.without_down_bias.relative < 20
    assert [rows[name].size for name in ("fusion", "svd", "magnitude")] == ["14", "rank 5", "26.8 % non-zero"]


def test_a_mask_and_factors_that_lose_nothing_have_the_output_of_the_block():
    (masked,) = compare(pico_model("bert"), [mlpfusion.Magnitude()], keep_ratio=1.0)
    assert masked.error.output_error == masked.error.adam_kernel_error == 0
    model = pico_model("bert")
    mlp = model.encoder.layer[1].intermediate.dense, model.encoder.layer[1].output.dense
    with torch.no_grad():
        for linear in mlp:  # of rank 3, below that of the budget
            linear.weight.copy_(linear.weight[:, :3] @ linear.weight[:3])
    (factored,) = compare(model, [mlpfusion.SVD()])
    assert factored.error.output_error < 1e-5
    assert factored.error.adam_kernel_error > 0.01  # factors train otherwise


def test_compare_writes_table_record_and_chart(minilm, tmp_path):
    methods = "fusion:refine=false,neuron-pruning"
    options = ["--data", *SENTENCES, "--max-samples", 6, "--seeds", "0,1", "--methods", methods, "--layers", 5]
    result = call("compare", minilm, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "fusion refine=False" in result.stdout
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "comparison.json",
        "comparison.md",
        "comparison.png",
        "mlp_fusion_files.json",
    }
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(record["rows"]) == 4
    assert record["samples"] == 6
    assert str(minilm) not in json.dumps(record)
    assert all(len(line) <= 100 for line in result.stdout.splitlines() if not line.startswith("written"))
    for row in record["rows"]:
        assert set(row["error"]["plain"]["total"]) == {"relative", "absolute", "cosine", "trace_ratio", "alignment"}
        assert row["error"]["authors"] is None
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| neuron-pruning | narrow | 384 | 295,680 | 295,680 | 1,181,568 |" in text
    assert "## Output error of the layer, relative" in text


@pytest.mark.slow
def test_the_authors_numbers_stand_in_fields_of_their_own(minilm, tmp_path):
    options = ["--data", *SENTENCES, "--max-samples", 6, "--seeds", 0, "--methods", "svd,magnitude", "--layers", 5]
    plain = call("compare", minilm, *options, "--json")
    quirks = call("compare", minilm, *options, "--json", "--authors-quirks", "--out", tmp_path)
    assert quirks.exit_code == plain.exit_code == 0, quirks.output
    for row, other in zip(json.loads(plain.stdout)["rows"], json.loads(quirks.stdout)["rows"], strict=True):
        authors = other["error"].pop("authors")
        assert row["error"].pop("authors") is None
        assert other["error"] == row["error"]
        assert authors["output"] > 0
        assert authors["kernel"] > 0
    text = (tmp_path / "comparison.md").read_text()
    assert "authors' kernel error: prob0, absolute" in text.lower()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["svd", "magnitude"])
def test_measure_takes_every_kind(method, minilm, tmp_path):
    out = tmp_path / "out"
    cut = ["--layers", "last:2", "--keep-ratio", 0.25, "--method", method]
    assert call("compress", minilm, out, *cut).exit_code == 0
    options = ["--data", *SENTENCES, "--max-samples", 6]
    result = call("measure", minilm, out, *options, "--json")
    assert result.exit_code == 0, result.output
    errors = json.loads(result.stdout)["blocks"]
    assert [error["path"] for error in errors] == ["encoder.layer.4", "encoder.layer.5"]
    compared = call("compare", minilm, *options, "--seeds", 0, "--methods", method, "--layers", "5", "--json")
    alone = json.loads(compared.stdout)["rows"][0]["error"]
    if method == "svd":  # magnitude ranks over all blocks of a cut
        assert errors[1]["output_error"] == pytest.approx(alone["output_error"], rel=1e-4)
        assert errors[1]["block_output_error"] == pytest.approx(alone["block_output_error"], rel=1e-4)
    assert errors[1]["adam_kernel_error"] != pytest.approx(alone["adam_kernel_error"], rel=1e-4)
    shown = call("measure", minilm, out, *options, "--authors-quirks")
    assert "kernel error (prob0)" in shown.stdout


@pytest.mark.slow
def test_measure_takes_only_the_source_of_a_checkpoint(minilm, tmp_path):
    out = tmp_path / "out"
    assert call("compress", minilm, out, "--layers", "last:2", "--keep-ratio", 0.25).exit_code == 0
    options = ["--data", *SENTENCES, "--max-samples", 6]
    result = call("measure", minilm, out, *options, "--json")
    assert result.exit_code == 0, result.output
    errors = json.loads(result.stdout)["blocks"]
    assert [error["path"] for error in errors] == ["encoder.layer.4", "encoder.layer.5"]
    assert all(0.1 < error["output_error"] < 1.5 for error in errors)
    assert "encoder.layer.4" in call("measure", minilm, out, *options).stdout
    other = save_checkpoint(tmp_path / "other")
    for original, compressed, message in [
        (other, out, "ORIGINAL must be the source of"),
        (minilm, minilm, "COMPRESSED must be compressed by mlpfusion"),
        (out, out, "`model` must not be compressed already"),
    ]:
        refused = call("measure", original, compressed, *options)
        assert refused.exit_code == 2
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "magic"], "`method` must be one of"),
        (["--methods", "fusion:speed=3"], "options of fusion must be among"),
        (["--seeds", "-1"], "`--seeds` must be at least 0, got -1"),
        (["--scalar", "accuracy"], "`--scalar` must be one of logit"),
        (["--layers", "last:99"], "`--layers last:N` must have N between 1 and 6, got 99"),
        (["--data", "none.jsonl"], "`--data` must be a readable file, got none.jsonl"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message, minilm):
    result = call("compare", minilm, "--data", *SENTENCES, *options)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_the_calibrated_methods_share_one_calibration_a_seed_pooling_and_scalar(monkeypatch):
    traced: list[tuple[int, str, str]] = []

    def spy(model, sites, batches, seed, pooling, scalar):
        traced.append((seed, pooling, scalar))
        return trace_calibration(model, sites, batches, seed, pooling, scalar)

    monkeypatch.setattr(comparison, "trace_calibration", spy)
    methods = [mlpfusion.MaintainOutput(), mlpfusion.MaintainNTKGradient(), mlpfusion.NTKMatch(refine_epochs=1)]
    calibration = {seed: [pico_inputs("bert", 7 + seed)] for seed in (0, 1)}
    rows = compare(pico_model("bert"), methods, layers="0,2", seeds=[0, 1], calibration=calibration)
    assert traced == [(0, "mean", "head"), (1, "mean", "head")]
    assert len(rows) == 12
    alone = compare(pico_model("bert"), methods[2:], layers="2", seeds=[1], calibration=calibration)
    for name in ("output_error", "adam_kernel_error"):
        assert getattr(alone[0].error, name) == getattr(rows[-1].error, name)
    traced.clear()
    others = [replace(methods[2], pooling="first"), mlpfusion.NIRVANA()]
    compare(pico_model("bert"), [*methods, *others], calibration=calibration)
    assert traced == [(0, "mean", "head"), (0, "first", "head"), (0, "mean", "peak")]
    traced.clear()
    compare(pico_model("bert"), [mlpfusion.Fusion()], calibration=calibration)
    assert traced == []


def test_out_of_compare_is_looked_at_before_any_work(tmp_path, monkeypatch):
    """And what it holds is not replaced."""
    monkeypatch.setattr("mlpfusion.commands.results.compare.prepared", lambda *_, **__: pytest.fail("it worked"))
    (tmp_path / "text.txt").write_text("w1 w2\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "comparison.md").write_text("mine")
    model = save_checkpoint(tmp_path / "model")
    for out in (tmp_path / "text.txt", tmp_path / "text.txt" / "in", tmp_path / "mine"):
        line = refused("compare", model, "--data", tmp_path / "text.txt", "--out", out, "--overwrite")
        assert line.startswith("Error: `--out` must")
    assert (tmp_path / "mine" / "comparison.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "99"], "`--layers` must be between 0 and 2, got 99"),
        (["--keep-ratio", 0], "`--keep-ratio` must be above 0 and at most 1, got 0.0"),
    ],
)
def test_layers_and_size_of_compare_are_checked_before_the_weights_are_read(flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr("mlpfusion.checkpoint.open.load_model", lambda *_: pytest.fail("weights were read"))
    (tmp_path / "text.txt").write_text("w1 w2\n")
    model = save_checkpoint(tmp_path / "model")
    line = refused("compare", model, "--data", tmp_path / "text.txt", "--methods", "fusion", *flags)
    assert line == f"Error: {message}"
