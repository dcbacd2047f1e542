"""Generation as a task: what the model sees and is scored on, what it writes, and that a kill changes nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from command import call, refused
from pico import pico_model
from safetensors.torch import load_file
from tiny_task import WORDS, make_task, save_checkpoint, tiny_tokenizer
from tiny_texts import rows, webnlg_folder, write_rows
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.generation.encode import EncodedGeneration, with_decoding
from mlpfusion.data.generation.entries import Entry, GenerationExamples
from mlpfusion.data.generation.task import GENERATION
from mlpfusion.data.generation.webnlg import ADDED_TOKENS
from mlpfusion.data.language.labels import NOT_PREDICTED
from mlpfusion.data.task import TaskData
from mlpfusion.data.tasks import encode_task
from mlpfusion.errors import InputError
from mlpfusion.generation.decode import Decoder
from mlpfusion.generation.run import generate_and_score
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.task import TaskOptions
from mlpfusion.tune.trainer import StageTrainer

CLS, SEP, FIRST = 1, 2, 4  # ids of [CLS], [SEP], w0


def encoded(config: Any, count: int = 12) -> EncodedGeneration:
    entries = tuple(Entry(row["source"], (row["target"],)) for row in rows(count))
    split = GenerationExamples(entries)
    data = TaskData(GENERATION["generation"], split, {"validation": split}, "made up")
    found = encode_task(data, tiny_tokenizer(), config)
    assert isinstance(found, EncodedGeneration)
    return found


def test_what_a_causal_model_sees_and_learns():
    item = encoded(AutoConfig.for_model("llama")).train[1]  # "w7 w8" -> "w7 w7"
    assert item["input_ids"] == [CLS, FIRST + 7, FIRST + 8, FIRST + 7, FIRST + 7, SEP]
    assert item["labels"] == [NOT_PREDICTED] * 3 + [FIRST + 7, FIRST + 7, SEP]


def test_what_an_encoder_decoder_sees_and_learns():
    item = encoded(AutoConfig.for_model("t5")).train[1]
    assert item["input_ids"] == [CLS, FIRST + 7, FIRST + 8, SEP]
    assert item["labels"] == [FIRST + 7, FIRST + 7, SEP]


@pytest.mark.parametrize(("name", "auto_class"), [("llama", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)])
def test_a_model_learns_to_write_and_its_texts_are_kept(name, auto_class, tmp_path):
    model = save_checkpoint(tmp_path / "model", name, auto_class)
    flags = ["--batch-size", 16, "--epochs", 25, "--learning-rate", "1e-2", "--select-on", "last"]
    result = call("tune", model, tmp_path / "out", *write_rows(tmp_path), *flags, "--max-new-tokens", 6)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/mlp_fusion_tune_record.json").read_text())
    scores = record["runs"][0]["scores"]["validation"]
    assert scores["chrf"] > 50
    assert scores["perplexity"] < 3
    assert record["runs"][0]["generated"]["signatures"]["bleu"].startswith(
        "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp"
    )
    lines = [json.loads(line) for line in (tmp_path / "out/generated/validation.jsonl").read_text().splitlines()]
    assert [(line["source"], line["references"]) for line in lines] == [
        (row["source"], [row["target"]]) for row in rows(20, 12)
    ]
    assert sum(line["text"] == line["references"][0] for line in lines) >= 5
    assert record["runs"][0]["generated"]["cut"] == {"validation": sum(not line["ended"] for line in lines)}
    assert f"{auto_class.__name__}.from_pretrained" in (tmp_path / "out/README.md").read_text()
    auto_class.from_pretrained(tmp_path / "out")


def writer(stop: int = SEP, **options: Any) -> Decoder:
    return Decoder(tiny_tokenizer(), (stop,), Decoding(max_new_tokens=5, **options))


def texts(decoder: Decoder, model: Any, data: EncodedGeneration) -> dict[int, str]:
    return {one.number: one.text for batch in decoder.write(model, data.prompts["validation"]) for one in batch}


@pytest.mark.parametrize(("name", "auto_class"), [("gpt2", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)])
def test_batches_and_their_order_change_no_text(name, auto_class):
    model = pico_model(name, auto_class).double()
    data = encoded(model.config)
    one_by_one = texts(writer(3, decode_batch=1), model, data)
    assert texts(writer(3, decode_batch=5), model, data) == one_by_one
    assert len(set(one_by_one.values())) > 3  # else this shows little
    turned = GenerationExamples(tuple(reversed(data.prompts["validation"].entries.entries)))
    prompts = replace(data.prompts["validation"], ids=tuple(reversed(data.prompts["validation"].ids)), entries=turned)
    found = texts(writer(3, decode_batch=5), model, replace(data, prompts={"validation": prompts}))
    assert found == {11 - number: text for number, text in one_by_one.items()}


def test_dropout_is_off_and_the_sampling_of_the_model_is_not_used():
    model = pico_model("gpt2", AutoModelForCausalLM)
    data = encoded(model.config)
    quiet = texts(writer(), model, data)
    model.config.attn_pdrop = model.config.resid_pdrop = 0.9
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    model.generation_config.update(do_sample=True, temperature=5.0, num_beams=3, repetition_penalty=9.0)
    assert texts(writer(), model.train(), data) == quiet
    assert model.training
    assert texts(writer(num_beams=4), model, data) != quiet


def test_decoding_goes_on_where_it_was_stopped(tmp_path):
    model = pico_model("llama", AutoModelForCausalLM)
    data = encoded(model.config)
    data = replace(data, decoding=Decoding(max_new_tokens=5, decode_batch=2))
    whole = generate_and_score(model, data, tmp_path / "whole")
    calls = []

    def stop(done: int, total: int, what: str) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_and_score(model, data, tmp_path / "stopped", stop)
    unfinished = tmp_path / "stopped/validation.unfinished.jsonl"
    kept = unfinished.read_text().splitlines()
    unfinished.write_text("\n".join(kept[:-1]) + "\n" + kept[-1][:9])  # killed inside a line
    calls.clear()
    resumed = generate_and_score(model, data, tmp_path / "stopped", lambda done, *_: calls.append(done))
    assert calls[0] == len(kept) - 1
    assert resumed == whole
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "stopped")]
    assert names == [["validation.jsonl"]] * 2
    assert (tmp_path / "stopped/validation.jsonl").read_bytes() == (tmp_path / "whole/validation.jsonl").read_bytes()


def test_a_model_that_writes_nothing_scores_0(tmp_path):
    model = pico_model("llama", AutoModelForCausalLM)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # all logits are equal: token 0 is written
    found = generate_and_score(model, replace(encoded(model.config), stops=(0,)), tmp_path)
    scores = found.numbers(GENERATION["generation"])["validation"]
    assert [scores[name] for name in ("bleu", "chrf", "rouge_l", "meteor_exact_stem", "bleu_protocol")] == [0.0] * 5
    assert (scores["ter"], found.cut) == (100.0, {"validation": 0})


CHAT = "{% for m in messages %}[CLS] {{ m.role }} {{ m.content }} [SEP] {% endfor %}"
CHAT += "{% if add_generation_prompt %}[CLS] assistant {% endif %}"


def test_a_chat_is_learned_on_the_turns_of_the_assistant(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(["user", "assistant", *WORDS])
    tokenizer.chat_template = CHAT
    turns = [("user", "w1"), ("assistant", "w2"), ("user", "w3 w4"), ("assistant", "w5 w6")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row) + "\n")
    file = str(tmp_path / "chats.jsonl")
    data = encode_task(
        chosen_data(TaskOptions(task="generation", train=file), file), tokenizer, AutoConfig.for_model("llama")
    )
    assert isinstance(data, EncodedGeneration)
    learned = [
        tokenizer.decode([label for label in item["labels"] if label != NOT_PREDICTED]) for item in data.train.items
    ]
    assert learned == ["w2 [SEP]", "w5 w6 [SEP]"]
    (prompt,) = data.prompts["validation"].ids
    assert (
        tokenizer.decode(list(prompt))
        == "[CLS] user w1 [SEP] [CLS] assistant w2 [SEP] [CLS] user w3 w4 [SEP] [CLS] assistant"
    )
    assert data.prompts["validation"].entries.references == (("w5 w6",),)
    monkeypatch.setattr("mlpfusion.data.generation.encode.special_frame", lambda _tokenizer: pytest.fail("asked"))
    assert encode_task(chosen_data(TaskOptions(task="generation", train=file), file), tokenizer).train.items
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="the tokenizer must have a chat template for a file with `messages`"):
        encode_task(chosen_data(TaskOptions(task="generation", train=file), file), tokenizer)


def test_webnlg_brings_its_tokens_and_is_scored_by_group(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    flags = ["--device", "cpu", "--epochs", 1, "--max-new-tokens", 4, "--seeds", "0,1"]
    result = call("tune", model, tmp_path / "out", "--task", "webnlg", *flags)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/mlp_fusion_tune_record.json").read_text())
    assert list(record["scores"]) == ["validation", "test", "test SEEN", "test UNSEEN"]
    assert list(record["scores"]["validation"]) == ["perplexity", "loss"]
    assert "bleu_protocol" in record["scores"]["test SEEN"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert trained.config.vocab_size == len(tokenizer) == len(tiny_tokenizer()) + 16
    assert tokenizer("<subject>w3<property>w1")["input_ids"][1:3] == [len(tokenizer) - 4, FIRST + 3]
    again = call("tune", tmp_path / "out", tmp_path / "again", "--task", "webnlg", *flags[:6])
    assert again.exit_code == 0, again.output
    assert AutoConfig.from_pretrained(tmp_path / "again").vocab_size == trained.config.vocab_size


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # the head of GPT-2 is its embedding
def test_lora_trains_the_rows_of_the_new_tokens_and_no_other(name, tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", name, AutoModelForCausalLM)
    flags = ["--epochs", 1, "--batch-size", 2, "--select-on", "last", "--max-new-tokens", 2, "--device", "cpu"]
    for out, rate, lora in (("drawn", 1e-20, []), ("trained", 1e-2, ["--lora", "r=2"])):
        result = call("tune", model, tmp_path / out, "--task", "webnlg", *flags, "--learning-rate", rate, *lora)
        assert result.exit_code == 0, result.output
    drawn, trained = (AutoModelForCausalLM.from_pretrained(tmp_path / one) for one in ("drawn", "trained"))
    number, tensors = len(ADDED_TOKENS), [dict(one.named_parameters()) for one in (drawn, trained)]
    for table in ("transformer.wte.weight",) if name == "gpt2" else ("model.embed_tokens.weight", "lm_head.weight"):
        before, after = (one[table] for one in tensors)
        assert torch.equal(before[:-number], after[:-number])
        assert (before[-number:] - after[-number:]).abs().max() > 1e-4


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_rows_of_the_new_tokens(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    flags = ["--task", "webnlg", "--lora", "r=2", "--epochs", 3, "--batch-size", 1, "--save-steps", 1]
    flags += ["--select-on", "last", "--max-new-tokens", 2, "--device", "cpu", "--learning-rate", 1e-2]
    assert call("tune", model, tmp_path / "whole", *flags).exit_code == 0
    step, steps = StageTrainer.training_step, []

    def stop_at_the_third(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(StageTrainer, "training_step", stop_at_the_third)
        assert call("tune", model, tmp_path / "out", *flags).exit_code != 0
    assert call("tune", model, tmp_path / "out", *flags, "--resume").exit_code == 0
    found, expected = (load_file(tmp_path / out / "model.safetensors") for out in ("out", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_model_without_the_tokens_of_webnlg_is_refused_where_none_are_learned(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    assert call("compress", model, tmp_path / "cut", "--keep-ratio", 0.5).exit_code == 0
    message = "must have the special tokens of webnlg, which `tune` adds, got none as <pad>"
    assert message in refused("evaluate", model, "--task", "webnlg")
    assert message in refused("distill", model, tmp_path / "cut", tmp_path / "out", "--task", "webnlg")


def test_dynamics_of_an_encoder_decoder_that_writes(tmp_path):
    model = save_checkpoint(tmp_path / "model", "t5", AutoModelForSeq2SeqLM)
    flags = ["--methods", "fusion,ntk-match:match=none:refine_epochs=0", "--steps", 2, "--seeds", 0, "--batch-size", 4]
    result = call("dynamics", model, *write_rows(tmp_path), "--out", tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    full, *cut = json.loads((tmp_path / "out/dynamics.json").read_text())["rows"]
    assert full["distance"] == [0.0, 0.0]
    assert all(0 < distance < 3 for row in cut for distance in row["distance"])


def test_parts_of_an_own_file_are_scored_by_themselves(tmp_path):
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    lines = [row | {"part": "easy" if index % 2 else "hard"} for index, row in enumerate(rows(8))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--task", "generation", "--validation", tmp_path / "rows.jsonl", "--group-column", "part"]
    result = call("evaluate", model, *flags, "--max-new-tokens", 3, "--json")
    assert list(json.loads(result.stdout)["scores"]) == ["validation", "validation hard", "validation easy"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text-column", "x"], "`--text-column` must be left out for the task generation, which has no use for it"),
        (["--source-column", "x"], "`--source-column` must be a column of"),
        (
            ["--max-length", 5],
            "`--train` must hold no source with its text of more than 5 tokens",
        ),
        (["--max-length", 65], "`--max-length` must be between 1 and 64, what the model takes, got 65"),
        (["--max-new-tokens", 0], "`--max-new-tokens` must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(flags, message, tmp_path):
    model = save_checkpoint(tmp_path / "model", "llama", AutoModelForCausalLM)
    assert message in refused("tune", model, tmp_path / "out", *write_rows(tmp_path), *flags)
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_write_are_refused(tmp_path):
    encoder = save_checkpoint(tmp_path / "encoder", "bert", AutoModelForMaskedLM)
    refusal = refused("tune", encoder, tmp_path / "out", *write_rows(tmp_path))
    assert "MODEL must be a causal language model, such as a LlamaForCausalLM, got a BertForMaskedLM" in refusal
    model = save_checkpoint(tmp_path / "model", "llama", AutoModelForCausalLM)
    settings = tmp_path / "model/tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": None}))
    refusal = refused("tune", model, tmp_path / "out", *write_rows(tmp_path))
    assert "the tokenizer must have an end token for generation, got none" in refusal


def test_decoding_options_of_other_tasks_are_refused(tmp_path, checkpoint, data):
    refusal = refused("tune", checkpoint, tmp_path / "out", *data, "--num-beams", 2)
    assert "`--num-beams` must be left out for the task custom, which has no use for it, got 2" in refusal
    with pytest.raises(InputError, match="`num_beams` must be left out"):
        with_decoding(make_task(), Decoding(num_beams=2))
