"""Each shape that people bring, as the row that it becomes."""

import json

import pytest

from tunesmith.core.data_section import Fields, Source
from tunesmith.data.reading import shapes
from tunesmith.data.reading.values import Unusable

P, C = {"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}
HUMAN, GPT, WORSE = {"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}, {"from": "gpt", "value": "w"}


def read(record, fields=None, system=None):
    return shapes.read(record, Fields(**(fields or {})), system, [])


def turns(record, fields=None):
    return [(m["role"], m["content"]) for m in read(record, fields).messages]


@pytest.mark.parametrize(("shape", "record"), [
    ("messages", {"messages": [P, C]}),
    ("messages", {"conversation": [P, C]}),
    ("messages", {"conversations": [P, C]}),
    ("messages", {"chat": json.dumps([P, C])}),
    ("messages", {"prompt": "p", "prompt_id": 1, "messages": [P, C]}),
    ("messages", {"messages": [{"role": "User", "content": "p"}, {"role": "model", "content": "c"}]}),
    ("sharegpt", {"conversations": [HUMAN, GPT]}),
    ("sharegpt", {"conversations": [HUMAN, {"from": "chatgpt", "value": "c", "weight": None}]}),
    ("alpaca", {"instruction": "p", "output": "c"}),
    ("alpaca", {"instruction": "p", "input": "", "output": "c", "text": "all of it"}),
    ("alpaca", {"instruction": "p", "input": " \n", "output": "c"}),
    ("alpaca", {"instruction": "p", "context": None, "response": "c", "category": "open_qa"}),
    ("preference", {"instruction": "p", "input": "", "output": "o", "chosen": "c", "rejected": "w"}),
    ("kto", {"messages": [P, C], "label": True}),
    ("kto", {"prompt": "p", "completion": "c", "kto_tag": "True"}),
    ("kto", {"prompt": "p", "completion": "c", "label": 1}),
    ("kto", {"prompt": "p", "completion": "c", "label": " 1"}),
    ("kto", {"instruction": "p", "output": "c", "kto_tag": 1.0}),
    ("prompt_completion", {"prompt": "p", "completion": "c", "label": 2}),
    ("messages", {"messages": [P, C], "label": 0}),
    ("columns", {"text": "p", "category": "c", "kto_tag": None}),
    ("prompt_completion", {"prompt": "p", "completion": "c"}),
    ("prompt_completion", {"prompt": [P], "completion": [C]}),
    ("prompt_completion", {"prompt": P, "response": C}),
    ("prompt_completion", {"prompt": "p", "completion": [P, C]}),
    ("columns", {"input": "p", "output": "c"}),
    ("columns", {"text": "p", "category": "c"}),
    ("columns", {"id": 7, "user": "p", "assistant": "c"}),
])  # fmt: skip
def test_one_round_in_every_shape_is_the_same_conversation(shape, record):
    found = read(record)
    assert (found.shape, found.messages, found.tools, found.notes) == (shape, [P, C], [], [])


def test_alpaca_joins_instruction_input_history_and_system():
    record = {"system": "s", "history": [["a", "b"]], "instruction": "i", "input": "x", "output": "o"}
    assert turns(record) == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "i\nx"), ("assistant", "o")]
    assert turns({**record, "history": '[["a", "b"]]'}) == turns(record)


@pytest.mark.parametrize(("written", "seconds"), [
    ("20260105", 1_767_571_200.0), (20260105, 1_767_571_200.0), (20261305, 20_261_305.0), (12345678, 12_345_678.0),
    (1_767_571_200, 1_767_571_200.0), (1_767_571_200_250, 1_767_571_200.25), ("1767571200250000", 1_767_571_200.25),
    (1_767_571_200_000_000_000, 1_767_571_200.0),
    ("1970-01-02", 86_400.0), ("1970-01-01T01:00:00+01:00", 0.0), (7, 7.0), ("7.5", 7.5), ("", None), (None, None),
])  # fmt: skip
def test_a_column_may_say_when_the_answer_was_given(written, seconds):
    found = read({"prompt": "p", "completion": "c", "day": written}, {"time": "day"})
    assert (found.time, found.messages) == (seconds, [P, C])
    assert read({"prompt": "p", "completion": "c", "day": written}).time is None


@pytest.mark.parametrize("written", ["yesterday", [1], {"a": 1}, "nan", float("inf")])
def test_a_time_that_cannot_be_read_is_refused(written):
    with pytest.raises(Unusable, match="time cannot be read"):
        read({"prompt": "p", "completion": "c", "day": written}, {"time": "day"})


def test_context_is_part_of_the_prompt():
    assert turns({"question": "q", "context": "x", "answer": "a"}) == [("user", "q\nx"), ("assistant", "a")]


def test_no_part_of_a_prompt_is_left_out_in_silence():
    for record in ({"prompt": "p", "input": "x", "completion": "c"}, {"prompt": "p", "context": "x", "output": "c"},
                   {"prompt": "p", "input": "x", "chosen": "c", "rejected": "w"}):  # fmt: skip
        assert turns(record) == [("user", "p\nx"), ("assistant", "c")]
    assert turns({"prompt": "p", "history": [["a", "b"]], "response": "c"})[:2] == [("user", "a"), ("assistant", "b")]
    assert turns({"prompt": [P], "input": "", "completion": "c"}) == [("user", "p"), ("assistant", "c")]
    for record in ({"question": "q", "input": "x", "output": "c"}, {"query": "q", "input": "x", "output": "c"}):
        with pytest.raises(Unusable, match="several columns could be the answer"):
            read(record)
    assert turns({"question": "q", "output": "c"}) == [("user", "q"), ("assistant", "c")]


def test_system_columns():
    assert turns({"system_prompt": "s", "question": "q", "response": "a"})[0] == ("system", "s")
    assert turns({"system": "", "conversations": [HUMAN, GPT]})[0] == ("user", "p")
    repeated = {"system": "s", "messages": [{"role": "system", "content": "s"}, P, C]}
    assert turns(repeated)[0] == ("system", "s")


@pytest.mark.parametrize("record", [
    {"prompt": "p", "chosen": "c", "rejected": "w"},
    {"question": "p", "chosen": "c", "rejected": "w"},
    {"prompt": [P], "chosen": C, "rejected": {"role": "assistant", "content": "w"}},
    {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE},
    {"messages": [P], "chosen": [C], "rejected": [{"role": "assistant", "content": " w "}]},
    {"chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]},
    {"prompt": "p", "chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]},
    {"prompt": "p", "chosen": json.dumps(GPT), "rejected": json.dumps(WORSE)},
    {"chosen": json.dumps([HUMAN, GPT]), "rejected": json.dumps([HUMAN, WORSE])},
    {"chosen": "\n\nHuman: p\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: w"},
    {"input": {"messages": [P], "tools": [], "parallel_tool_calls": True}, "preferred_output": [C],
     "non_preferred_output": [{"role": "assistant", "content": "w"}]},
])  # fmt: skip
def test_preference_pairs(record):
    found = read(record)
    assert (found.shape, found.messages, found.rejected) == ("preference", [P, C], "w")


def test_an_openai_preference_record_brings_its_tools():
    pair = {"preferred_output": [C], "non_preferred_output": [C]}
    assert read({"input": {"messages": [P], "tools": [{"name": "f"}]}, **pair}).tools == [{"name": "f"}]
    with pytest.raises(Unusable, match="messages are not a list"):
        read({"input": {}, **pair})


def test_answers_that_are_json_stay_as_they_are():
    found = read({"prompt": "p", "chosen": '{"value": 1}', "rejected": "{broken"})
    assert (found.messages[-1]["content"], found.rejected) == ('{"value": 1}', "{broken")


def test_a_transcript_keeps_every_turn():
    transcript = "Human: one\n\nAssistant: two\n\nstill two\n\nHuman: three\n\nAssistant:"
    found = read({"chosen": f"{transcript} c", "rejected": f"{transcript} w"})
    assert [m["content"] for m in found.messages] == ["one", "two\n\nstill two", "three", "c"]
    assert found.rejected == "w"


@pytest.mark.parametrize(("record", "reason"), [
    ({"chosen": [HUMAN, GPT], "rejected": [{"from": "human", "value": "other"}, WORSE]},
     "chosen and rejected are not answers to one prompt"),
    ({"chosen": [HUMAN, GPT, HUMAN], "rejected": [HUMAN, GPT, {"from": "human", "value": "w"}]},
     "chosen and rejected are not answers"),
    ({"prompt": "p", "completion": "c", "label": False}, "answer labelled as bad"),
    ({"messages": [P, C], "label": "false"}, "answer labelled as bad"),
    ({"prompt": "p", "completion": "c", "label": 0}, "answer labelled as bad"),
    ({"prompt": "p", "completion": "c", "label": "0"}, "answer labelled as bad"),
    ({"instruction": "p", "output": "c", "kto_tag": 0.0}, "answer labelled as bad"),
    ({"text": "t"}, "raw text has no answer to learn from"),
    ({"text": "t", "label": "a", "category": "b"}, "several columns could be the answer"),
    ({"prompt": "p", "response": "a", "answer": "b"}, "several columns could be the answer"),
    ({"instruction": "p", "output": None}, "a needed value is null"),
    ({"messages": 5}, "messages are not a list"),
    ({"custom_id": "1", "response": {"status_code": 200, "body": {}}, "error": None}, "response without its request"),
    ({"custom_id": "1", "response": None, "error": {"code": 1}}, "response without its request"),
    ({}, "record is empty"),
    ([1], "record is not an object"),
])  # fmt: skip
def test_what_no_shape_fits(record, reason):
    with pytest.raises(Unusable) as refusal:
        read(record)
    assert refusal.value.reason == reason


CAPITAL, CITIES = "Which is a capital?", ["Rome", "Milan"]


@pytest.mark.parametrize(("options", "answer"), [
    ({"choices": CITIES}, 0), ({"choices": CITIES}, "A"), ({"options": CITIES}, "(b)"),
    ({"choices": json.dumps(CITIES)}, "1"), ({"choices": str(CITIES)}, "1"), ({"choices": "['Rome' 'Milan']"}, "B"),
    ({"options": {"A": "Rome", "B": "Milan"}}, "A"),
    ({"choices": {"text": CITIES, "label": ["A", "B"]}}, "A"), ({"options": [{"key": "A", "value": "Rome"}]}, "A."),
])  # fmt: skip
def test_options_that_the_question_does_not_show_are_asked_for(options, answer):
    assert turns({"question": CAPITAL, **options, "answer": "Rome"}) == [("user", CAPITAL), ("assistant", "Rome")]
    for record in ({"question": CAPITAL, "answer": answer}, {"instruction": CAPITAL, "output": answer}):
        with pytest.raises(Unusable, match="options are not in the question") as refusal:
            read({**record, **options})
        assert f"write the options under `{next(iter(options))}` into the question" in refusal.value.fix
    shown = {"question": f"{CAPITAL}\nA. Rome\nB. Milan", **options, "answer": answer}
    assert turns(shown)[-1] == ("assistant", str(answer))


@pytest.mark.parametrize("beside", [
    {"options": {"temperature": 0, "model": "m"}}, {"options": None}, {"choices": []}, {"options": ["1", "2"]},
    {"choices": "A or B"}, {"choices": ["too few"]},
])  # fmt: skip
def test_a_number_may_be_an_answer_of_its_own(beside):
    assert turns({"question": "1 + 1?", **beside, "answer": "2"}) == [("user", "1 + 1?"), ("assistant", "2")]


def test_a_fix_names_the_columns_and_the_mapping():
    with pytest.raises(Unusable) as refusal:
        read({"text": "t", "mood": "good"})
    assert refusal.value.reason == "no answer column"
    assert refusal.value.fix == (
        "none of `text`, `mood` is known as an answer: name it in the project file with "
        "`fields: {prompt: text, answer: ...}`"
    )


@pytest.mark.parametrize(("answer", "text"), [
    ({"b": 1, "a": [1.5, None, "é"]}, '{"b": 1, "a": [1.5, null, "é"]}'), ([], "[]"), (5, "5"), (0.1, "0.1"),
    (True, "true"), (10**25, "10000000000000000000000000"), ("", ""),
    ({"from": "0x1", "value": 2}, '{"from": "0x1", "value": 2}'),
])  # fmt: skip
def test_answers_become_compact_text_in_their_own_order(answer, text):
    assert turns({"prompt": "p", "completion": answer}) == [("user", "p"), ("assistant", text)]


def test_fields_go_before_every_shape():
    record = {"instruction": "i", "output": "o", "mine": "m", "talk": [HUMAN, GPT]}
    assert turns(record, {"answer": "mine"}) == [("user", "i"), ("assistant", "m")]
    assert turns(record, {"prompt": "mine"}) == [("user", "m"), ("assistant", "o")]
    assert turns(record, {"prompt": "mine", "answer": "instruction"}) == [("user", "m"), ("assistant", "i")]
    assert turns(record, {"messages": "talk"}) == [("user", "p"), ("assistant", "c")]
    assert turns(record, {"system": "mine"}) == [("system", "m"), ("user", "i"), ("assistant", "o")]
    assert read(record, {"system": "mine"}).shape == "alpaca"
    pair = read({"q": "p", "chosen": "c", "rejected": "w"}, {"prompt": "q"})
    assert (pair.shape, pair.messages, pair.rejected) == ("fields", [P, C], "w")
    asked = {"talk": [HUMAN, GPT, HUMAN], "chosen": GPT, "rejected": WORSE}
    pair = read(asked, {"messages": "talk"})
    assert (pair.messages, pair.rejected) == ([P, C, P, C], "w")
    assert read({**asked, "talk": [HUMAN, GPT]}, {"messages": "talk"}).messages == [P, C]


def test_a_column_that_fields_name_plays_that_part_alone():
    """Read as a system message or as tools too, an answer would stand in its own prompt."""
    assert turns({"q": "p", "system": "c"}, {"prompt": "q", "answer": "system"}) == [("user", "p"), ("assistant", "c")]
    found = read({"q": "p", "tools": [{"name": "f"}]}, {"prompt": "q", "answer": "tools"})
    assert (found.tools, found.messages) == ([], [P, {"role": "assistant", "content": '[{"name": "f"}]'}])
    assert turns({"q": "p", "tools": "saw"}, {"prompt": "q", "answer": "tools"})[-1] == ("assistant", "saw")
    named = {"system": "who", "prompt": "system", "answer": "a"}
    assert turns({"who": "s", "system": "p", "a": "c"}, named) == [("system", "s"), ("user", "p"), ("assistant", "c")]


def test_an_answer_that_is_labelled_as_bad_stays_out_where_fields_name_the_columns():
    record = {"ask": "p", "tell": "c", "label": False}
    with pytest.raises(Unusable, match="answer labelled as bad"):
        read(record, {"prompt": "ask", "answer": "tell"})
    with pytest.raises(Unusable, match="answer labelled as bad"):
        read({"talk": [HUMAN, GPT], "kto_tag": "False"}, {"messages": "talk"})
    with pytest.raises(Unusable, match="answer labelled as bad"):
        read({"prompt": "p", "completion": "c", "kto_tag": 0}, {"prompt": "prompt", "answer": "completion"})
    assert turns({"prompt": "p", "completion": "c", "label": 0}, {"prompt": "prompt", "answer": "label"})[-1][1] == "0"
    assert turns({"text": "p", "label": 0}) == [("user", "p"), ("assistant", "0")]
    assert turns({**record, "label": True}, {"prompt": "ask", "answer": "tell"}) == [("user", "p"), ("assistant", "c")]
    assert turns(record, {"prompt": "ask", "answer": "label"})[-1] == ("assistant", "false")
    assert turns({"ask": "p", "label": False}, {"prompt": "ask"})[-1] == ("assistant", "false")


@pytest.mark.parametrize("label", [0, "0", 1])
def test_a_label_of_0_or_1_is_a_class_where_fields_name_prompt_and_answer(label):
    record = {"prompt": "p", "completion": "c", "label": label}
    assert read(record, {"prompt": "prompt", "answer": "completion"}).messages == [P, C]
    assert shapes.label_of(record, Fields(prompt="prompt", answer="completion")) is None
    assert shapes.label_of(record, Fields(group="id")) == "label"


@pytest.mark.parametrize(("label", "value", "way_out"), [
    ("label", 0, "as a class, say in the source which columns count, `fields: {prompt: ..., answer: ...}`"),
    ("label", False, "name it otherwise"), ("kto_tag", 0, "name it otherwise"),
])  # fmt: skip
def test_the_refusal_of_a_bad_answer_names_the_way_out(label, value, way_out):
    with pytest.raises(Unusable, match="answer labelled as bad") as refusal:
        read({"prompt": "p", "completion": "c", label: value})
    assert refusal.value.fix.endswith(f"where that column says something else, {way_out}")


@pytest.mark.parametrize(("fields", "told"), [
    ({"prompt": "a", "answer": "a"}, "`a` is named twice"), ({"system": "a", "messages": "a"}, "`a` is named twice"),
    ({"messages": "a", "answer": "b"}, "`answer` is not read beside `messages`"),
    ({"messages": "a", "prompt": "b"}, "`prompt` is not read beside `messages`"),
])  # fmt: skip
def test_fields_that_contradict_one_another_are_refused(fields, told, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=told):
        Source.model_validate({"path": str(tmp_path / "a.jsonl"), "fields": fields})


def test_a_system_message_may_be_written_in_parts():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert turns({"system": parts, "messages": [P, C]})[0] == ("system", "one\ntwo")
    assert turns({"system": {"a": 1}, "messages": [P, C]})[0] == ("system", '{"a": 1}')


@pytest.mark.parametrize(("fields", "reason"), [
    ({"answer": "mine"}, "no prompt column"), ({"prompt": "mine"}, "no answer column"),
    ({"prompt": "absent", "answer": "mine"}, "a column named in `fields` is missing"),
    ({"prompt": "empty", "answer": "mine"}, "a needed value is null"),
    ({"messages": "mine"}, "messages are not a list"),
])  # fmt: skip
def test_fields_that_a_record_cannot_follow(fields, reason):
    with pytest.raises(Unusable) as refusal:
        read({"mine": "m", "empty": None}, fields)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("tools", [
    [{"name": "f"}], '[{"name": "f"}]', {"name": "f"}, ['{"name": "f"}'], '{"name": "f"}',
])  # fmt: skip
def test_tools_are_parsed(tools):
    assert read({"conversations": [HUMAN, GPT], "tools": tools}).tools == [{"name": "f"}]


def test_openais_older_functions_are_tools():
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    function = {"name": "f", "parameters": {}}
    record = {"messages": [P, called], "functions": [function]}
    assert read(record).tools == [{"type": "function", "function": function}]
    assert read({**record, "tools": [{"name": "g"}]}).tools == [{"name": "g"}]


@pytest.mark.parametrize("functions", ["def f(): ...", ["f", "g"], [{"line": 7}], None])
def test_a_column_of_that_name_may_be_something_else(functions):
    assert read({"prompt": "p", "completion": "c", "functions": functions}).tools == []


@pytest.mark.parametrize("tools", [None, "", "[]", [], {}])
def test_no_tools(tools):
    assert read({"conversations": [HUMAN, GPT], "tools": tools}).tools == []


def test_the_projects_system_message_is_for_rows_without_one():
    assert read({"prompt": "p", "completion": "c"}, system="s").messages == [{"role": "system", "content": "s"}, P, C]
    own = {"messages": [{"role": "system", "content": ""}, P, C]}
    assert read(own, system="s").messages[0] == {"role": "system", "content": ""}
