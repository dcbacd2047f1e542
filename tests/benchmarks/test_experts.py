"""What the benchmarks do to whole experts, what they count, and that they go on where they stopped."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import load_script
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers import PreTrainedTokenizerFast as Fast

import mlpfusion
from mlpfusion.mlp import forward

SIZES: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(params=["mixtral", "qwen3_moe"])
def mixture(request) -> Any:
    """A tiny random mixture of eight experts."""
    torch.manual_seed(0)
    if request.param == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=48)).eval()
    config = Qwen3MoeConfig(**SIZES, moe_intermediate_size=48, num_experts=8, num_experts_per_tok=2)
    return Qwen3MoeForCausalLM(config).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 11, (4, 20), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def whole() -> Any:
    return load_script("benchmarks/whole_experts.py")


def test_all_experts_kept_or_merged_with_none_are_the_same_model(whole, mixture, batch):
    with torch.no_grad():
        expected = mixture(**batch).logits
        for make in (whole.with_experts_dropped, whole.with_experts_merged):
            torch.testing.assert_close(make(mixture, [batch], 8)(**batch).logits, expected)
            moved = (make(mixture, [batch], 4)(**batch).logits - expected).abs().max()
            assert moved > 0


def test_merged_experts_stay_the_same_in_training(whole, mixture, batch):
    merged = whole.with_experts_merged(mixture, [batch], 4)
    optimizer = torch.optim.AdamW(merged.parameters(), lr=0.01)
    for step in range(3):
        down = merged.model.layers[0].mlp.experts.down_proj
        assert len({tuple(expert[0, :4].tolist()) for expert in down}) == 4, step
        merged(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()


def test_the_score_of_an_expert_is_the_mean_weighted_length_of_its_outputs(whole, mixture, batch):
    (found, *_) = whole.mixtures(mixture, [batch]).values()
    number = int(found.uses.argmax())
    lengths = []
    for token, chosen in enumerate(found.routing.chosen.tolist()):
        if number in chosen:
            output = forward(found.experts[number], found.routing.inputs[token][None])
            lengths.append(float(output.norm() * found.routing.weights[token, chosen.index(number)]))
    torch.testing.assert_close(
        float(whole.reap_scores(found)[number]), sum(lengths) / len(lengths), rtol=1e-5, atol=1e-6
    )


def test_tokens_that_a_mask_hides_count_for_no_expert(whole, mixture, batch):
    padded = {name: torch.nn.functional.pad(values, (0, 5)) for name, values in batch.items()}
    alone = whole.routings(mixture, [batch])
    for path, routing in whole.routings(mixture, [padded]).items():
        assert torch.equal(routing.chosen, alone[path].chosen)


def test_a_router_agrees_with_itself_and_with_what_is_left_of_it(whole, mixture, batch):
    experts = load_script("benchmarks/experts.py")
    before = whole.routings(mixture, [batch])
    dropped = whole.with_experts_dropped(mixture, [batch], 4)
    numbers = whole.first_numbers(mixture, mixture)
    assert experts.agreement(before, before, numbers) == 1
    kept = whole.first_numbers(mixture, dropped)
    first = next(iter(before))
    assert len(set(kept[first].tolist())) == 4
    only_first = {first: before[first]}  # what enters it is as it was, so all choices that can stay do
    assert experts.agreement(only_first, whole.routings(dropped, [batch]), kept) == 1
    assert 0 < experts.agreement(before, whole.routings(dropped, [batch]), kept) <= 1


def test_widths_have_no_more_parameters_and_are_multiples_of_eight(mixture):
    width_at = load_script("benchmarks/experts.py").width_at
    assert [width_at(mixture, keep) for keep in (1, 0.75, 0.5, 0.25)] == [48, 32, 24, 8]


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25])
def test_a_budget_and_a_method_that_chooses_widths_leave_as_many_parameters(mixture, batch, keep):
    script = load_script("benchmarks/experts.py")
    evenly = script.narrowed(mixture, script.REFIT, keep, 0, [batch]).num_parameters()
    for make, method in ((script.within_budget, script.REFIT), (script.narrowed, mlpfusion.NIRVANA())):
        assert make(mixture, method, keep, 0, [batch]).num_parameters() == evenly


@pytest.mark.parametrize("mixture", ["mixtral"], indirect=True)
def test_fine_tuned_scores_go_on_where_they_stopped(mixture, evaluation_data, tmp_path, monkeypatch, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers

    script = load_script("benchmarks/experts_tasks.py")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "good": 1, "bad": 2, "the": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    Fast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>").save_pretrained(tmp_path / "model")
    mixture.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(script, "TASKS", {"sst2": script.Size(40, 1)})
    monkeypatch.setattr(script, "METHODS", (mlpfusion.Fusion(),))
    monkeypatch.setenv("MLPFUSION_DATA", str(evaluation_data))
    out = tmp_path / "record.json"
    command = ["experts_tasks.py", str(tmp_path / "model"), "--out", str(out), "--keeps", "0.5"]
    for seeds, runs in (("0", 5), ("0,1", 5)):  # full, untrained, fused, dropped, merged
        monkeypatch.setattr(sys, "argv", [*command, "--seeds", seeds])
        script.main()
        assert capsys.readouterr().out.count('"task"') == runs
    rows = json.loads(Path(out).read_text())["rows"]
    assert len({(row["start"], row["seed"]) for row in rows}) == len(rows) == 10
    assert all(0 <= row["scores"]["accuracy"] <= 1 for row in rows)
    sizes = {row["start"]: row["parameters"] for row in rows}
    assert sizes["fusion"] < sizes["full"] == sizes["merge experts (M-SMoE)"]
