"""Segment ids of WebNLG: which models add their word embeddings, that they are learned with and written with."""

import json
from typing import Any

import pytest
import torch
from command import call, refused
from pico import pico_model
from tiny_task import save_checkpoint, tiny_tokenizer
from tiny_texts import webnlg_folder
from transformers import AutoConfig, AutoModelForCausalLM

from mlpfusion.checkpoint.tokenizer import add_tokens
from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.generation.encode import EncodedGeneration
from mlpfusion.data.generation.segments import MODEL_TYPES
from mlpfusion.data.generation.webnlg import ADDED_TOKENS, TARGET
from mlpfusion.data.tasks import encode_task
from mlpfusion.generation.decode import Decoder
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.task import TaskOptions

SIZES = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4}
OTHER_NAMES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}


@pytest.mark.parametrize("name", MODEL_TYPES)
@torch.no_grad()
def test_models_of_the_list_add_word_embeddings_of_segments(name):
    sizes = {"vocab_size": 40, "max_position_embeddings": 32, **OTHER_NAMES} if name == "gpt_neo" else SIZES
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).double().eval()
    ids, segments = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 9, 3, 3]])
    words = model.get_input_embeddings()
    expected = model(inputs_embeds=words(ids) + words(segments)).logits
    found = model(input_ids=ids, token_type_ids=segments).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, model(input_ids=ids).logits, atol=1e-3)


def webnlg(*, segment_ids: bool) -> tuple[Any, EncodedGeneration, Any]:
    """A model in float64, the task for it, and its tokenizer."""
    model, tokenizer = pico_model("gpt2", AutoModelForCausalLM), tiny_tokenizer()
    add_tokens(tokenizer, ADDED_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.get_input_embeddings().weight.data += 0.3 * torch.randn(len(tokenizer), 32)
    data = encode_task(chosen_data(TaskOptions(task="webnlg", segment_ids=segment_ids), None), tokenizer, model.config)
    assert isinstance(data, EncodedGeneration)
    return model.double(), data, tokenizer


@torch.no_grad()
def without_cache(model: Any, ids: list[int], segments: list[int], target: int, count: int) -> list[int]:
    """Greedy tokens, each from a run on all tokens before it."""
    ids, segments = list(ids), list(segments)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([segments]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
        segments.append(target)
    return ids[-count:]


def test_written_tokens_have_the_segment_of_the_target(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model, data, tokenizer = webnlg(segment_ids=True)
    prompts, target = data.prompts["test"], tokenizer.convert_tokens_to_ids(TARGET)
    assert prompts.segments is not None
    decoder = Decoder(tokenizer, (3,), Decoding(max_new_tokens=8, decode_batch=4))
    found = {one.number: one for batch in decoder.write(model, prompts) for one in batch}
    plain = Decoder(tokenizer, (3,), Decoding(max_new_tokens=8))
    unlike = {
        one.number: one for batch in plain.write(model, webnlg(segment_ids=False)[1].prompts["test"]) for one in batch
    }
    for number, (ids, segments) in enumerate(zip(prompts.ids, prompts.segments, strict=True)):
        expected = without_cache(model, list(ids), list(segments), target, 8)
        assert found[number] == decoder._written(number, expected)
    assert found != unlike


def test_a_model_tuned_with_segments_scores_alike_when_it_is_evaluated_with_them(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    flags = ["--task", "webnlg", "--device", "cpu", "--max-new-tokens", 4]
    training = ["--epochs", 2, "--learning-rate", "1e-2"]
    result = call("tune", model, tmp_path / "out", *flags, *training, "--segment-ids")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/mlp_fusion_tune_record.json").read_text())
    assert record["recipe"]["segment_ids"] is True
    assert record["data"] == "webnlg of MLPFUSION_DATA, with segment ids"
    with_ids, without = (
        json.loads(call("evaluate", tmp_path / "out", *flags, *more, "--json").stdout)["scores"]["test"]
        for more in (["--segment-ids"], [])
    )
    assert with_ids == pytest.approx(record["runs"][0]["scores"]["test"], rel=1e-5)
    assert abs(with_ids["loss"] - without["loss"]) > 1e-3


def test_without_files_of_webnlg_it_is_said_where_they_go(tmp_path, monkeypatch):
    monkeypatch.setenv("MLPFUSION_DATA", "")
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    refusal = refused("tune", model, tmp_path / "out", "--task", "webnlg")
    assert "must name a folder with webnlg/{train,validation,test}.jsonl.gz, as docs/jobs/tune.md says" in refusal
    assert "the Hub has no WebNLG 2017 without a loading script" in refusal


def test_segments_that_a_model_cannot_have_are_refused(tmp_path, monkeypatch, checkpoint, data):
    webnlg_folder(tmp_path, monkeypatch)
    model, out = save_checkpoint(tmp_path / "model", "llama", AutoModelForCausalLM), tmp_path / "out"
    refusal = refused("tune", model, out, "--task", "webnlg", "--segment-ids")
    assert "`--segment-ids` must be left out but for codegen, gpt2, gpt_bigcode, gpt_neo, gptj, which" in refusal
    assert refusal.endswith("got llama")
    for flags in (["--task", "generation"], ["--task", "language-modelling"], ["--task", "sst2"], data):
        assert "`--segment-ids` must be left out" in refused("tune", checkpoint, out, *flags, "--segment-ids")
    refusal = refused("tune", model, out, "--task", "webnlg", "--validation", "x.jsonl")
    assert "`--validation` must be left out for the task webnlg, which has no use for it, got x.jsonl" in refusal
