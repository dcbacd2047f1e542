import json
from pathlib import Path

import pytest

from mlpfusion.data.generation.chats import Chat, ChatExamples, Message
from mlpfusion.data.generation.entries import Entry, GenerationExamples
from mlpfusion.data.generation.rows import GenerationColumns, read_generation
from mlpfusion.errors import InputError

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello."}


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_line_a_reference_becomes_one_entry(tmp_path):
    file = tmp_path / "e2e.csv"
    file.write_text('mr,ref\n"name[Eden], area[city]",Eden.\n"name[Eden], area[city]",It is Eden.\nb,B\n')
    examples = read_generation(file, "train", GenerationColumns("mr", "ref"))
    assert isinstance(examples, GenerationExamples)
    assert examples.entries == (Entry("name[Eden], area[city]", ("Eden.", "It is Eden.")), Entry("b", ("B",)))
    assert [pair.reference for pair in examples.pairs()] == ["Eden.", "It is Eden.", "B"]


def test_only_neighbours_of_one_source_and_group_are_joined(tmp_path):
    rows = [("a", "A", "x"), ("b", "B", "x"), ("a", "AA", "x"), ("a", "AAA", "y")]
    file = write_lines(tmp_path / "a.jsonl", *({"s": s, "t": t, "g": g} for s, t, g in rows))
    examples = read_generation(file, "train", GenerationColumns("s", "t", "g"))
    assert isinstance(examples, GenerationExamples)
    assert examples.references == (("A",), ("B",), ("AA",), ("AAA",))
    assert examples.groups == ("x", "y")
    assert examples.subset([3, 0]).groups == ("y", "x")


def test_a_target_may_be_a_list_and_lists_of_neighbours_are_joined(tmp_path):
    rows = [{"source": "a", "target": ["A", "AA"]}, {"source": "a", "target": "AAA"}]
    examples = read_generation(write_lines(tmp_path / "a.jsonl", *rows), "train")
    assert isinstance(examples, GenerationExamples)
    assert examples.references == (("A", "AA", "AAA"),)


def test_a_cell_of_csv_is_one_text_even_if_it_looks_like_a_list(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('source,target\na,"[""A"", ""AA""]"\n')
    examples = read_generation(file, "train")
    assert isinstance(examples, GenerationExamples)
    assert examples.references == (('["A", "AA"]',),)


def test_texts_stay_as_they_are(tmp_path):
    examples = read_generation(write_lines(tmp_path / "a.jsonl", {"source": " a\n", "target": "\tA "}), "train")
    assert isinstance(examples, GenerationExamples)
    assert examples.entries == (Entry(" a\n", ("\tA ",)),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "A"}, r"`source_column` must be a column of .*a.jsonl, line 2, one of target, got 'source'"),
        ({"source": "a"}, r"`target_column` must be a column of .*a.jsonl, line 2, one of source, got 'target'"),
        ({"source": 1, "target": "A"}, r"`source` must be text in .*a.jsonl, line 2, got 1"),
        ({"source": " ", "target": "A"}, r"`source` must be text in .*a.jsonl, line 2, got ' '"),
        ({"source": "a", "target": []}, r"`target` must hold at least one reference text in .*line 2, got \[\]"),
        ({"source": "a", "target": ""}, r"`target` must hold at least one reference text in .*line 2, got ''"),
        ({"source": "a", "target": None}, r"`target` must hold at least one reference text in .*line 2, got None"),
        ({"source": "a", "target": 3}, r"`target` must be text in .*line 2, got 3"),
        ({"source": "a", "target": ["A", 3]}, r"`target` must be text in .*line 2, got 3"),
        ({"source": "a", "target": ["A", " "]}, r"`target` must be text in .*line 2, got ' '"),
    ],
)
def test_a_bad_row_is_named(row, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_generation(write_lines(tmp_path / "a.jsonl", {"source": "a", "target": "A"}, row), "train")


def test_a_bad_group_is_named(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"source": "a", "target": "A", "part": 3})
    with pytest.raises(InputError, match=r"`part` must be text in .*a.jsonl, line 1, got 3"):
        read_generation(file, "train", GenerationColumns(group="part"))
    with pytest.raises(InputError, match=r"`group_column` must be a column of .*, one of source, .*, got 'g'"):
        read_generation(file, "train", GenerationColumns(group="g"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_an_empty_file_is_named(name, tmp_path):
    (tmp_path / name).write_text("source,target\n" if name == "a.csv" else "")
    with pytest.raises(InputError, match=f"`train` must hold at least one row, got none in .*{name}"):
        read_generation(tmp_path / name, "train")


def test_conversations_are_recognised(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    file = write_lines(tmp_path / "a.jsonl", {"messages": [system, HI, HELLO]}, {"messages": [HI, HELLO, HI, HELLO]})
    chats = read_generation(file, "train")
    user, answer = Message("user", "Hi"), Message("assistant", "Hello.")
    first = Chat((Message("system", "Be brief."), user), "Hello.")
    assert chats == ChatExamples((first, Chat((user, answer, user), "Hello.")))
    assert isinstance(chats, ChatExamples)
    assert len(chats) == 2
    sources = chats.entries(lambda messages: "|".join(message.role for message in messages))
    assert [entry.source for entry in sources.entries] == ["system|user", "user|assistant|user"]


def test_neighbouring_conversations_with_one_prompt_are_one_entry(tmp_path):
    other = {"role": "assistant", "content": "Hi."}
    file = write_lines(tmp_path / "a.jsonl", {"messages": [HI, HELLO]}, {"messages": [HI, other]})
    chats = read_generation(file, "train")
    assert isinstance(chats, ChatExamples)
    assert chats.entries(lambda messages: messages[0].content).entries == (Entry("Hi", ("Hello.", "Hi.")),)


def test_named_columns_win_over_messages(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"messages": "a", "target": "A"})
    examples = read_generation(file, "train", GenerationColumns("messages"))
    assert isinstance(examples, GenerationExamples)
    assert examples.entries == (Entry("a", ("A",)),)


def test_a_key_without_a_value_is_no_key(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"messages": [HI | {"tool_calls": None}, HELLO]})
    chats = read_generation(file, "train")
    assert isinstance(chats, ChatExamples)
    assert chats.chats[0].prompt == (Message("user", "Hi"),)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"`messages` must be a list of {role, content} in .*a.jsonl, line 2, got \[\]"),
        ("Hi", r"`messages` must be a list of {role, content} in .*line 2, got 'Hi'"),
        (["Hi"], r"`messages` must be a list of {role, content}, these two alone, in .*line 2, got 'Hi'"),
        ([HI | {"name": "Ann"}, HELLO], r"these two alone, in .*line 2, got {.*'name': 'Ann'"),
        ([{"role": "user"}, HELLO], r"these two alone, in .*line 2, got {'role': 'user'}"),
        ([HI], r"`messages` must end with the assistant's turn after another one in .*line 2, got the roles user"),
        ([HELLO], r"`messages` must end with .* in .*line 2, got the roles assistant"),
        ([HI, HELLO, HI], r"`messages` must end with .*line 2, got the roles user, assistant, user"),
        ([HI | {"role": "bot"}, HELLO], r"`role` must be one of system, user, assistant in .*line 2, got 'bot'"),
        ([HI | {"role": ["user"]}, HELLO], r"`role` must be one of system, user, assistant in .*got \['user'\]"),
        ([HI | {"content": [1]}, HELLO], r"`content` must be text in .*line 2, got \[1\]"),
        ([HI, HELLO | {"content": ""}], r"`content` must be text in .*line 2, got ''"),
    ],
)
def test_a_bad_conversation_is_named(messages, message, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"messages": [HI, HELLO]}, {"messages": messages})
    with pytest.raises(InputError, match=message):
        read_generation(file, "train")


def test_a_row_without_messages_is_named(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"messages": [HI, HELLO]}, {"text": "a"})
    with pytest.raises(InputError, match=r"`messages` must be a column of .*line 2, one of text, got 'messages'"):
        read_generation(file, "train")
