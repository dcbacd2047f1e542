"""Trained heads keep their meaning: classes are matched by name, and a head is new where it is said to be."""

import json
from dataclasses import replace

import pytest
import torch
from command import call, refused
from pico import pico_config, pico_model
from safetensors.torch import load_file, save_file
from tiny_task import examples, save_checkpoint, tiny_tokenizer
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.data.labelled.glue import GLUE, LabelledTask
from mlpfusion.data.labelled.heads import class_order, in_order_of_head, teacher_order
from mlpfusion.data.labelled.load import LabelledData
from mlpfusion.data.task import TaskData
from mlpfusion.data.task_model import encode_for, load_for_task, load_in_own_class, load_like
from mlpfusion.data.tasks import kind_of_task
from mlpfusion.data.unlabelled.examples import labelled_batches
from mlpfusion.errors import InputError
from mlpfusion.measure.dynamics import held_out_logits
from mlpfusion.tune.distill import Distill, check_pair, make_loss
from mlpfusion.tune.teacher import Teacher

HALF = LabelledTask(
    name="half",
    text_columns=("sentence",),
    label_names=("first half", "second-half"),
    metrics=("accuracy", "f1", "matthews"),
)


def half() -> LabelledData:
    return TaskData(HALF, examples(48, 0), {"validation": examples(64, 1)}, "made up")


def headed(folder, names=("LABEL_0", "LABEL_1"), order=(0, 1), name="bert"):
    """A checkpoint with a head whose rows, and their names with them, stand in `order`."""
    model = pico_model(name, AutoModelForSequenceClassification)
    model.config.id2label = dict(enumerate(names[place] for place in order))
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    for parameter in model.get_submodule("classifier").parameters():
        parameter.data = parameter.data[list(order)].contiguous()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def scores(folder) -> dict[str, float]:
    source = open_for_training(str(folder))
    data = encode_for(source, half(), 16)
    model = load_for_task(source, data.task, 0).eval()
    found = data.evaluation["validation"]
    order = sorted(range(len(found)), key=lambda index: found.lengths[index])
    logits = held_out_logits(model, labelled_batches(found, data.collate, 32), kind_of_task(data.task))
    labels = torch.tensor([found[index]["labels"] for index in order]).numpy()
    return kind_of_task(data.task).score(data.task, logits.numpy(), labels)


def test_scores_do_not_depend_on_the_order_of_the_classes_in_the_head(tmp_path):
    names = ("First_Half", "SECOND half")
    straight, swapped = headed(tmp_path / "a", names), headed(tmp_path / "b", names, (1, 0))
    assert scores(straight) == pytest.approx(scores(swapped))
    assert scores(straight) == pytest.approx(scores(headed(tmp_path / "c")))  # no names: the order of the data
    assert 0.1 < scores(straight)["accuracy"] < 0.9


def test_tune_keeps_names_and_rows_of_the_head_and_names_the_class_of_f1(data, tmp_path):
    outs = [tmp_path / "x", tmp_path / "y"]
    for out, order in zip(outs, [(0, 1), (1, 0)], strict=True):
        folder = headed(tmp_path / f"model-{out.name}", ("0", "1"), order)
        flags = [*data, "--epochs", 1, "--learning-rate", "1e-9", "--select-on", "last"]
        result = call("tune", folder, out, *flags)
        assert result.exit_code == 0, result.output
        assert "f1 of 1 " in result.stdout
        assert "| f1 of 1 |" in (out / "README.md").read_text()
    records = [json.loads((out / "mlp_fusion_tune_record.json").read_text()) for out in outs]
    assert records[0]["scores"] == records[1]["scores"]
    assert AutoModelForSequenceClassification.from_pretrained(outs[1]).config.id2label == {0: "1", 1: "0"}


@pytest.mark.parametrize(
    ("task", "names", "order"),
    [
        ("mnli", ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), (2, 1, 0)),
        ("mnli", ("LABEL_0", "LABEL_1", "LABEL_2"), (0, 1, 2)),
        ("mnli", ("contradiction", "neutral", "other"), None),
        ("mrpc", ("equivalent", "not_equivalent"), (1, 0)),
        ("qqp", ("not duplicate", "Duplicate"), (0, 1)),
        ("rte", ("not-entailment", "Entailment"), (1, 0)),
        ("sst2", ("1", "0"), (1, 0)),
        ("sst2", ("LABEL_1", "LABEL_0"), None),
        ("sst2", ("positive", "Positive"), None),
    ],
)
def test_classes_of_glue_are_found_by_every_name_they_go_by(task, names, order):
    assert class_order(names, GLUE[task].spellings()) == order


def test_numbers_that_a_sign_tells_apart_stay_apart():
    assert class_order(("1", "-1"), [("-1", "1")]) == (1, 0)


def test_the_class_of_f1_stays_the_same_class():
    config = pico_config("bert")
    config.id2label = {0: "equivalent", 1: "not_equivalent"}
    found = in_order_of_head(TaskData(GLUE["mrpc"], examples(8, 0), {}, ""), config)
    assert found.task.label_names[found.task.positive] == "equivalent"
    assert [1 - label for label in found.train.labels] == list(examples(8, 0).labels)


def test_a_head_that_cannot_be_matched_is_refused_by_every_command_that_trains_with_labels(data, tmp_path):
    strange = headed(tmp_path / "strange", ("cat", "dog"))
    wanted = "a head for the classes 0, 1 of custom, got one for cat, dog; give both the same names, or `"
    commands = {
        "tune": [strange, tmp_path / "out", *data],
        "dynamics": [strange, "--out", tmp_path / "out", *data[:10], "--device", "cpu"],
        "compress": [strange, tmp_path / "out", "--method", "lth", "--keep-ratio", 0.5, *data[:2], *data[4:10]],
    }
    for command, arguments in commands.items():
        message = refused(command, *arguments)
        assert wanted.replace("`", "") in message.replace("`", "")
        assert "draws a new one" in message
    assert not (tmp_path / "out").exists()


def test_a_config_that_names_a_head_does_not_make_one(tmp_path):
    folder = headed(tmp_path / "model", ("cat", "dog", "cow")[:2])
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[name] for name in weights if "classifier" not in name}, folder / "model.safetensors")
    source = open_for_training(str(folder))
    task = replace(HALF, label_names=("a", "b", "c"))
    models = [load_for_task(source, task, seed) for seed in (0, 0, 1)]
    heads = [model.get_submodule("classifier").get_parameter("weight") for model in models]
    assert heads[0].shape == (3, 32)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_that_the_config_does_not_name_is_one(tmp_path):
    folder = headed(tmp_path / "model", ("cat", "dog"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    with pytest.raises(InputError, match="got one for cat, dog"):
        encode_for(open_for_training(str(folder)), half(), 16)


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_a_new_head_has_nothing_of_the_old_one(name, tmp_path):
    """Also where both have the same size: it is the head that a checkpoint without one gets from the same seed."""
    old = save_checkpoint(tmp_path / "old", name, AutoModelForSequenceClassification)
    bare = save_checkpoint(tmp_path / "bare", name)
    trained = load_for_task(open_for_training(str(old)), replace(HALF, label_names=("LABEL_0", "LABEL_1")), 5)
    new = load_for_task(open_for_training(str(old), new_head=True), HALF, 5)
    drawn = load_for_task(open_for_training(str(bare)), HALF, 5)
    values, expected, before = dict(new.named_parameters()), dict(drawn.named_parameters()), trained.state_dict()
    head = [parameter for parameter in values if not parameter.startswith(f"{new.base_model_prefix}.")]
    assert head
    for parameter in head:
        assert torch.equal(values[parameter], expected[parameter]), parameter
    assert not torch.equal(values["classifier.weight"], before["classifier.weight"])
    for parameter in set(values) - set(head):
        assert torch.equal(values[parameter], before[parameter]) or "pooler" in parameter


def test_a_new_head_is_tuned_saved_and_of_the_size_of_the_task(data, tmp_path):
    model = pico_model("bert", AutoModelForMaskedLM)
    model.save_pretrained(tmp_path / "masked")
    folder = headed(tmp_path / "model", ("cat", "dog"))
    result = call("tune", folder, tmp_path / "out", *data, "--epochs", 1, "--new-head", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recipe"]["new_head"] is True
    saved = load_file(tmp_path / "out/model.safetensors")
    assert not [name for name in saved if "left_out" in name]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.id2label == {0: "0", 1: "1"}


def test_a_student_learns_the_teachers_logits_class_by_class(tmp_path):
    names = ("first half", "second half")
    teacher_folder, student_folder = headed(tmp_path / "a", names), headed(tmp_path / "b", names, (1, 0))
    teacher = load_in_own_class(open_for_training(str(teacher_folder)))
    student = load_like(open_for_training(str(student_folder)), teacher, 0)
    assert student.config.id2label == {0: "second half", 1: "first half"}
    assert teacher_order(student, teacher) == [1, 0]
    config = Distill(objective="logits")
    batch = dict(tiny_tokenizer()(["w1 w2 w3", "w40"], padding=True, return_tensors="pt"))
    loss = make_loss(Teacher(teacher), student, config)
    assert loss(student, batch).item() == pytest.approx(0, abs=1e-6)
    other = load_like(open_for_training(str(headed(tmp_path / "c", ("cat", "dog")))), teacher, 0)
    with pytest.raises(InputError, match="classes of `original`, first half, second half, got one for cat, dog"):
        check_pair(other, teacher, config)
