"""Decontamination: which prompts are a benchmark's question, which are not, and what the step says about it."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data import pipeline

QUESTION = (
    "A farmer has seventeen sheep and all but nine of them run away one night in a storm. "
    "How many sheep does the farmer have left the next morning?"
)


def row(prompt: str, line: int, answer: str = "", **more: Any) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer or f"answer {line}"}]
    return Row(messages, "t.jsonl", line, "messages", **more)


@pytest.fixture
def clean(tmp_path):
    """Cleans prompts beside these benchmarks; gives the summary, and of each dropped line the reason and the detail."""

    def run(prompts: list[str | Row], *benchmarks: Path, **options: Any) -> tuple[dict, dict[int, tuple[str, str]]]:
        rows = [one if isinstance(one, Row) else row(one, line) for line, one in enumerate(prompts, 1)]
        store.write_rows(tmp_path / "rows.jsonl", [*rows, row("a row that stays", 99)])
        (tmp_path / "out").mkdir(exist_ok=True)
        settings = Clean.model_validate({"benchmarks": [str(path) for path in benchmarks], **options})
        summary = pipeline.run(settings, Artifact("load", "0", tmp_path, "done"), tmp_path / "out")
        dropped = store.read_jsonl(tmp_path / "out/dropped.jsonl")
        return summary, {line["line"]: (line["reason"], line["detail"]) for line in dropped}

    return run


def benchmark(folder: Path, *questions: Any, name: str = "exam.jsonl") -> Path:
    records = [one if isinstance(one, dict) else {"question": one, "answer": "9"} for one in questions]
    store.write_jsonl(folder / name, records)
    return folder / name


def test_a_file_that_cannot_be_read_is_named_by_its_setting(clean, tmp_path):
    (tmp_path / "exam.jsonl").write_text("")
    with pytest.raises(DataError) as caught:
        clean(["hello"], tmp_path / "exam.jsonl")
    assert caught.value.next == "write the file again, or take it out of data.clean.benchmarks"


@pytest.mark.parametrize("name", ["exam.docx", "exam.PDF", "exam.html"])
def test_a_document_is_told_to_become_a_file_of_examples(clean, tmp_path, name):
    (tmp_path / name).write_text("<p>What is asked?</p>")
    with pytest.raises(ConfigError, match=f"data.clean.benchmarks: {name} is a document") as caught:
        clean(["hello"], tmp_path / name)
    assert "a file of examples" in caught.value.next
    assert "pretrain" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_a_compressed_benchmark_is_read(clean, tmp_path, kind):
    plain = benchmark(tmp_path, QUESTION).read_bytes()
    if kind == "gz":
        (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(plain))
    else:
        with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
            archive.writestr("exam.jsonl", plain)
    summary, dropped = clean([QUESTION, "hello"], next(tmp_path.glob("packed.*")))
    assert summary["benchmarks"]["questions"] == 1
    name = {"gz": "packed.jsonl.gz", "zip": "packed.zip/exam.jsonl"}[kind]
    assert dropped == {1: (f"in benchmark {name}", f"1.00 like {name}:1")}


@pytest.mark.parametrize("prompt", [
    QUESTION, QUESTION.upper(), QUESTION.replace(".", "!"), QUESTION.replace("storm", "gale"),
    f"Here is a riddle that my uncle likes to ask at dinner, please solve it. {QUESTION} Think step by step, and write "
    "no more than a number, then the reason for it in a sentence or two, in plain words.",
    "How many sheep does the farmer have left the next morning?",
    "all but nine of them run away one night in a storm. How many sheep are left",
])  # fmt: skip
def test_a_question_is_known_whole_changed_within_a_prompt_or_in_part(clean, tmp_path, prompt):
    _, dropped = clean([prompt], benchmark(tmp_path, "Another question of this benchmark?", QUESTION))
    reason, detail = dropped[1]
    assert reason == "in benchmark exam.jsonl"
    assert detail.endswith(" exam.jsonl:2")


@pytest.mark.parametrize("prompt", [
    "How many sheep does the farmer have?", "A farmer has seventeen cows. How many legs do they have in all?",
    "sheep seventeen has farmer a storm a in night one away run them of nine but all and", "?", "",
])  # fmt: skip
def test_what_shares_less_than_a_run_of_words_stays(clean, tmp_path, prompt):
    assert 1 not in {line for line, (reason, _) in clean([prompt], benchmark(tmp_path, QUESTION))[1].items()
                     if "benchmark" in reason}  # fmt: skip


@pytest.mark.parametrize(("words", "known"), [(7, False), (8, True), (12, True), (13, True), (14, True)])
def test_a_run_has_eight_words_or_more(clean, tmp_path, words, known):
    """Of a question that is no longer than that, inside a prompt; and of a prompt, inside a question."""
    short = " ".join(f"word{i}" for i in range(words))
    around = "and ".join(f"filler{i} " for i in range(60))
    _, dropped = clean([f"{around} {short} {around}"], benchmark(tmp_path, short))
    assert (1 in dropped) == known
    _, dropped = clean([short], benchmark(tmp_path, f"{around} {short} {around}"))
    assert (1 in dropped) == known


def test_a_long_prompt_and_a_long_question_share_thirteen_words_or_nothing(clean, tmp_path):
    words = [f"word{i}" for i in range(40)]
    for run, known in ((12, False), (13, True)):
        prompt = " ".join([f"other{i}" for i in range(20)] + words[10 : 10 + run] + [f"more{i}" for i in range(20)])
        _, dropped = clean([prompt], benchmark(tmp_path, " ".join(words)))
        assert (1 in dropped) == known


def test_the_form_of_a_benchmark_is_not_its_content(clean, tmp_path):
    form = (
        "Answer the following question with a single number and nothing else, as an expert in this field would do it:"
    )
    questions = [f"{form} what is the {name} of the {thing}, of which nobody knows anything at all?"
                 for name in ("height", "weight", "age", "price") for thing in ("tower", "bridge", "coin")]  # fmt: skip
    prompt = f"{form} my dog barks at the moon whenever it rains; how many times has he done so since Christmas, then?"
    assert clean([prompt], benchmark(tmp_path, *questions))[1] == {}
    assert 1 in clean([prompt], benchmark(tmp_path, *questions[:3]))[1]


def test_a_pinned_exam_may_be_the_benchmark(clean, tmp_path):
    path = benchmark(tmp_path, QUESTION)
    assert clean([row(QUESTION, 1, split="test"), row(QUESTION, 2, split="train")], path)[1].keys() == {2}


def test_nothing_is_looked_for_without_benchmarks_and_near_duplicates_need_not_be_on(clean, tmp_path):
    summary, dropped = clean([QUESTION])
    assert (dropped, "benchmarks" in summary) == ({}, False)
    path = benchmark(tmp_path, QUESTION)
    assert clean([QUESTION], path, near_duplicates=None)[1].keys() == {1}
    assert clean([QUESTION, QUESTION + " Tell!"], path, near_duplicates=0.9)[1].keys() == {1, 2}


def test_what_is_known_of_which_benchmark_is_told(clean, tmp_path):
    one = benchmark(tmp_path, QUESTION, {"id": 3}, name="one.jsonl")
    two = benchmark(tmp_path, "What is the name of the highest mountain in the whole world?", name="t{}wo.jsonl")
    summary, dropped = clean([QUESTION, "what is the name of the highest mountain in the whole world", "no"], one, two)
    assert summary["reasons"] == {"in benchmark one.jsonl": 1, "in benchmark t{}wo.jsonl": 1}
    assert dropped[2] == ("in benchmark t{}wo.jsonl", "1.00 like t{}wo.jsonl:1")
    assert summary["benchmarks"] == {
        "questions": 2, "unreadable": 1, "known_questions": 2, "rows": 2, "uncompared": 0,
    }  # fmt: skip
    assert summary["warnings"] == ["1 records of benchmarks have no question that could be read."]


@pytest.mark.parametrize("record", [
    {"prompt": QUESTION}, {"instruction": QUESTION, "output": "9"}, {"question": QUESTION, "choices": ["9", "8"]},
    {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "9"}]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]},
    {"text": QUESTION},
])  # fmt: skip
def test_only_the_prompts_of_a_benchmark_count(clean, tmp_path, record):
    assert clean([QUESTION, "9"], benchmark(tmp_path, record))[1].keys() == {1}


def test_a_file_without_a_question_is_refused(clean, tmp_path):
    with pytest.raises(ConfigError, match=r"exam\.jsonl has no question") as caught:
        clean([QUESTION], benchmark(tmp_path, {"id": 1}))
    assert "line 1" in caught.value.why


def test_humaneval_planted_among_other_code(clean, real_data):
    """Every question is found, in whole or as it is retold; none of the published instructions is one."""
    published = real_data / "code/HumanEval.jsonl.gz"
    prompts = [json.loads(line)["prompt"] for line in gzip.decompress(published.read_bytes()).splitlines()]
    planted = [f"Please finish this function for me.\n\n{prompt}\n\nWrite nothing but Python." for prompt in prompts]
    data = json.loads((real_data / "instructions/instruction-data.json").read_text())
    others = [f"{d['instruction']}\n{d['input']}" for d in data]
    summary, dropped = clean([*planted, *others], published, near_duplicates=None)
    known = {line for line, (reason, _) in dropped.items() if reason == "in benchmark HumanEval.jsonl.gz"}
    assert known == set(range(1, len(planted) + 1))
    assert (summary["benchmarks"]["questions"], summary["benchmarks"]["known_questions"]) == (164, 163)  # two are alike
