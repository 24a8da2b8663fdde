"""New rows by a real server: what each kind asks, what is dropped and why, and a ledger in which everything stands."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from grown import SIDES, grown, reasons_of, row, rows_of, splits
from served import Served, model_of, serving

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data.growing import questions
from tunesmith.models import base as bases

Say = Callable[[list[dict[str, str]], int], str]
Serve = Callable[[Say], AbstractContextManager[Served]]

HANDBOOK = """# The ferry

The ferry leaves the old harbour at seven in the morning. It carries 84 passengers and twelve bicycles.

## Tickets

A ticket to Skerry costs nine pounds. Dogs travel free of charge on the lower deck. The captain keeps the ship's log for
five years.
"""
GOOD = {"question": "When does the ferry leave the old harbour?", "answer": "At seven in the morning."}


@pytest.fixture(autouse=True)
def replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where replies are kept: no other test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/tunesmith/replies"


@pytest.fixture
def serve(tiny: bases.Base) -> Serve:
    """A server with a real, small model, which has these words put into its mouth."""

    def start(say: Say) -> AbstractContextManager[Served]:
        return serving(model_of(tiny, say))

    return start


def before(folder: Path, *more: Row) -> Artifact:
    rows = [
        row(f"Is room {i * 7919} on floor {i} free on {'abcdefgh'[i % 8] * 4}day?", f"Yes, {i}.", i)
        for i in range(1, 9)
    ]
    return splits(folder, [*rows, *more])


def handbook(folder: Path, text: str = HANDBOOK) -> Path:
    path = folder / "docs" / "ferry.md"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    return path.parent


def new(artifact: Artifact) -> list[Row]:
    return [r for r in rows_of(artifact) if r.shape.startswith("synthetic:")]


def asked_of(served: Served) -> list[str]:
    return [request["messages"][-1]["content"] for request in served.asked]


def synthesise(
    artifact: Artifact, served: Served, clean: Clean | None = None, system: str | None = None, **settings: Any
) -> Artifact:
    endpoint = {"url": served.url, "model": "small", **settings.pop("endpoint", {})}
    return grown(artifact, {"synthesise": {"endpoint": endpoint, **settings}}, clean, system=system)


def ledger(artifact: Artifact, kind: str) -> dict[str, Any]:
    """The ledger of a kind, after a look at whether it adds up."""
    told: dict[str, Any] = artifact.summary["synthesise"]["kinds"][kind]
    steps = [told[name] for name in ("parsed", "grounded", "clean", "unique", "decontaminated", "kept")]
    assert steps == sorted(steps, reverse=True)
    assert told["kept"] == len([r for r in new(artifact) if r.shape == f"synthetic:{kind}"])
    summary = artifact.summary
    left = sum(summary[side] for side in SIDES) + summary["dropped"]
    assert summary["rows_in"] + summary["made"] == left
    assert artifact.summary["dropped"] == sum(reasons_of(artifact).values())
    return told


def test_pairs_from_passages_and_what_is_wrong_with_the_others(tmp_path: Path, serve: Serve) -> None:
    exam = row("What does a ticket to Skerry cost?", pin="test")
    pairs = [
        GOOD,
        {"question": "How many passengers does the ferry carry?", "answer": "It carries 85 passengers."},
        {"question": "Does the ferry to Ullapool carry bicycles?", "answer": "Twelve bicycles."},
        {"question": "Where do dogs travel?", "answer": "Next to the engine, under a purple blanket."},
        {"question": "What does the ticket to Skerry cost?", "answer": "Nine pounds."},
        {"question": "When does the ferry leave the old harbour??", "answer": "At seven in the morning."},
        {"question": "", "answer": "Nine pounds."},
        {"question": "Who keeps the ship's log for five years?", "answer": "The captain keeps it."},
    ]  # fmt: skip
    with serve(lambda messages, seed: f"Here they are:\n```json\n{json.dumps(pairs)}\n```") as served:
        after = synthesise(
            before(tmp_path, exam), served, questions={"documents": [handbook(tmp_path)], "per_passage": 8}
        )
    assert [r.messages[0]["content"] for r in new(after)] == [GOOD["question"], pairs[-1]["question"]]
    assert reasons_of(after) == {
        "a number of the answer is not in the passage": 1,
        "a name of the question is not in the passage": 1,
        "words of the answer are not in the passage": 1,
        "prompt like one in test": 1,
        "repeats a new row": 1,
        "empty prompt": 1,
    }
    told = ledger(after, "questions")
    assert (told["asked"], told["answered"], told["parsed"], told["grounded"]) == (1, 1, 8, 5)
    assert (told["unique"], told["decontaminated"], told["kept"]) == (3, 2, 2)
    assert after.summary["synthesise"]["sources"] == {
        "documents": 1,
        "quarantined": 0,
        "passages": 1,
        "skipped": {},
    }
    [request] = served.asked
    assert "passage of The ferry" in request["messages"][0]["content"]
    assert "Write 8 questions" in request["messages"][0]["content"]
    passage = {r.parents[0] for r in new(after)}
    assert len(passage) == 1
    assert (new(after)[0].source, new(after)[0].line) == ("ferry.md", 1)


def to_sentence(messages: list[dict[str, str]], seed: int) -> str:
    """A question with two words of the sentence."""
    words = re.findall(r"[A-Za-z]{4,}", messages[-1]["content"].partition("Answer: ")[2])
    return f"What is it about the {' '.join(words[: len(words) // 2 + 1])}?"


def test_a_sentence_is_the_answer_and_the_model_writes_the_question(tmp_path: Path, serve: Serve) -> None:
    with serve(to_sentence) as served:
        settings = {"documents": [handbook(tmp_path)], "form": "sentences"}
        after = synthesise(before(tmp_path), served, questions=settings)
    assert len(served.asked) == 4  # "It carries 84 passengers" leans on the sentence before it
    assert all(len(request["messages"]) == 13 for request in served.asked)
    assert {r.answer for r in new(after)} <= set(questions.sentences(HANDBOOK))
    assert ledger(after, "questions")["kept"] == 4


def test_the_projects_system_message_goes_before_questions(tmp_path: Path, serve: Serve) -> None:
    with serve(lambda messages, seed: json.dumps([GOOD])) as served:
        settings = {"documents": [handbook(tmp_path)]}
        [made] = new(synthesise(before(tmp_path), served, questions=settings, system="Be brief."))
    assert [m["role"] for m in made.messages] == ["system", "user", "assistant"]
    assert made.messages[0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("What is it about this passage?", "the reply is not JSON"),
        ('{"q": 1, "a": 2}', "the reply has no question and answer"),
        ('[{"question": "What leaves?"}]', "the reply has no question and answer"),
    ],
)
def test_a_reply_that_gives_no_row_is_kept_with_its_reason(
    tmp_path: Path, serve: Serve, reply: str, reason: str
) -> None:
    with serve(lambda messages, seed: reply) as served:
        after = synthesise(before(tmp_path), served, questions={"documents": [handbook(tmp_path)]})
    assert reasons_of(after) == {reason: 1}
    told = ledger(after, "questions")
    assert (told["asked"], told["answered"], told["without_row"], told["parsed"]) == (1, 1, 1, 0)


def test_how_long_passages_are_how_often_they_are_asked_and_how_strict_is_set(tmp_path: Path, serve: Serve) -> None:
    loose = {"question": "When will the ferry sail away from the old harbour?", "answer": "At seven in the morning."}
    with serve(lambda messages, seed: json.dumps([loose])) as served:
        path, start = handbook(tmp_path, HANDBOOK * 3), before(tmp_path)
        counts = []
        for more in ({}, {"longest_words": 30}, {"tries": 2}, {"grounded_from": 0.5}, {"rows": 1, "grounded_from": 0}):
            after = synthesise(start, served, questions={"documents": [path], **more}, max_per_parent=1)
            counts.append((ledger(after, "questions")["asked"], len(new(after))))
    assert counts[0][1] == counts[1][1] == 0
    assert counts[1][0] > counts[0][0]
    assert counts[2][0] == 2 * counts[0][0]
    assert counts[3][1] == counts[4][1] == 1


def test_documents_that_hold_nothing_are_refused_and_unreadable_lines_are_kept(tmp_path: Path, serve: Serve) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(json.dumps({"text": HANDBOOK}) + "\nno json\n")
    with serve(lambda messages, seed: json.dumps([GOOD])) as served:
        start = before(tmp_path)
        after = synthesise(start, served, questions={"documents": [path]})
        assert after.summary["synthesise"]["sources"]["quarantined"] == 1
        assert [item["line"] for item in store.read_jsonl(after / "quarantined_documents.jsonl")] == [2]
        assert "1 of the documents cannot be read" in after.summary["headline"]
        path.write_text("no json\n")
        with pytest.raises(DataError, match=r"no passage in data\.grow\.synthesise\.questions\.documents"):
            synthesise(start, served, questions={"documents": [path]})


def test_seeds_show_examples_and_stop_when_nothing_new_comes(tmp_path: Path, serve: Serve) -> None:
    numbers = iter(range(10**6))
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]

    def say(messages: list[dict[str, str]], seed: int) -> str:
        n = next(numbers)
        text = (
            f"Please book {words[n % 12]} {words[n // 12 % 12]} for {words[n * 5 % 12]}" if n < 30 else "Please book it"
        )
        return json.dumps({"prompt": text, "answer": {"booked": True}})

    with serve(say) as served:
        after = synthesise(before(tmp_path), served, seeds={"rows": 500, "examples": 2}, endpoint={"concurrency": 1})
    told = ledger(after, "seeds")
    assert told["stopped"].startswith("saturated: ")
    assert told["kept"] == 31 < told["asked"] == 128
    made = new(after)[0]
    assert (made.answer, len(made.parents)) == ('{"booked":true}', 2)
    assert all(prompt.count("Prompt: Is room") == 2 for prompt in asked_of(served))


def test_as_many_as_are_wanted_and_no_more_are_asked_for(tmp_path: Path, serve: Serve) -> None:
    numbers = iter(range(10**6))
    with serve(lambda messages, seed: json.dumps({"prompt": f"{next(numbers) * 7919:x}", "answer": "no"})) as served:
        after = synthesise(before(tmp_path), served, seeds={"rows": 5})
    assert (len(new(after)), len(served.asked), ledger(after, "seeds")["stopped"]) == (5, 5, "there are enough")


def test_paraphrases_keep_answer_and_numbers(tmp_path: Path, serve: Serve) -> None:
    def say(messages: list[dict[str, str]], seed: int) -> str:
        room, floor = re.findall(r"\d+", messages[-1]["content"])
        texts = {
            "1": f"Could I have {room} up on {floor}?",
            "2": f"Could I have {room}?",
            "3": messages[-1]["content"].rpartition("\n\n")[2],
            "4": f"One\n\nTwo {room} {floor}",
            "5": f"Would Bertha give me {room} up on {floor}?",
        }
        return texts.get(floor, f'"May it be {room}, the one that is on {floor}?"')

    with serve(say) as served:
        after = synthesise(before(tmp_path), served, paraphrase={})
    by_answer = {r.answer: r for r in new(after)}
    assert by_answer["Yes, 1."].messages[0]["content"] == "Could I have 7919 up on 1?"
    assert by_answer["Yes, 8."].messages[0]["content"] == "May it be 63352, the one that is on 8?"
    assert reasons_of(after) == {
        "a number was lost or added": 1,
        "repeats a training row": 1,
        "the reply is not one text": 1,
        "a name was added": 1,
    }
    assert ledger(after, "paraphrase")["kept"] == 4
    parents = {r.id: r for r in rows_of(after) if r.shape == "messages"}
    assert all(parents[r.parents[0]].answer == r.answer for r in new(after))


def test_back_translation_asks_twice(tmp_path: Path, serve: Serve) -> None:
    def say(messages: list[dict[str, str]], seed: int) -> str:
        text = messages[-1]["content"]
        numbers = " ".join(re.findall(r"\d+", text.partition("alone.")[2]))
        return (
            f"chambre {numbers}" if "from English into French" in text else f"What about room {numbers} again, please?"
        )

    with serve(say) as served:
        after = synthesise(before(tmp_path), served, back_translation={"language": "French"})
        assert len(new(after)) == 8
        assert len(served.asked) == 16
        assert sum("from French into English" in text and "chambre" in text for text in asked_of(served)) == 8
        other = synthesise(
            before(tmp_path / "2"), served, back_translation={"language": "French", "from_language": "Dutch", "rows": 2}
        )
        assert len(new(other)) == 2
        assert any("from Dutch into French" in text for text in asked_of(served))


def test_caps_by_parent_and_by_share(tmp_path: Path, serve: Serve) -> None:
    numbers = iter(range(10**6))

    def say(messages: list[dict[str, str]], seed: int) -> str:
        found = " ".join(re.findall(r"\d+", messages[-1]["content"]))
        return f"{'abcdefghijklmnop'[next(numbers) % 16] * 30} {found}?"

    with serve(say) as served:
        start = before(tmp_path)
        many = synthesise(start, served, paraphrase={"per_row": 3}, endpoint={"concurrency": 1})
        one = synthesise(start, served, paraphrase={"per_row": 3}, max_per_parent=1, endpoint={"concurrency": 1})
        few = synthesise(start, served, paraphrase={"per_row": 3}, max_share=0.2)
        rows = synthesise(start, served, paraphrase={"per_row": 3, "rows": 7})
    assert max(Counter(r.parents[0] for r in new(many)).values()) == 3
    assert max(Counter(r.parents[0] for r in new(one)).values()) == 1
    assert (len(new(few)), len(new(rows))) == (2, 7)
    assert reasons_of(one)["over max_per_parent"] == len(new(many)) - len(new(one)) > 0


def test_cost_is_told_for_each_kept_row_and_a_second_run_pays_nothing(tmp_path: Path, serve: Serve) -> None:
    pairs = [GOOD, {"question": "Where do dogs travel free of charge?", "answer": "On the lower deck."}]
    with serve(lambda messages, seed: json.dumps(pairs)) as served:
        path, prices = handbook(tmp_path), {"input_price": 1_000_000.0, "output_price": 2_000_000.0}
        first = synthesise(before(tmp_path), served, questions={"documents": [path]}, endpoint=prices)
        [(prompt, answer)] = served.tokens
        told = ledger(first, "questions")
        assert told["cost"] == pytest.approx(prompt + 2 * answer)
        assert told["cost_per_kept"] == pytest.approx(told["cost"] / 2)
        assert (told["prompt_tokens"], told["answer_tokens"], told["known_replies"]) == (prompt, answer, 0)
        again = synthesise(before(tmp_path / "again"), served, questions={"documents": [path]}, endpoint=prices)
        assert len(served.asked) == 1
    assert (ledger(again, "questions")["cost"], ledger(again, "questions")["known_replies"]) == (0, 1)
    assert (again / "train.jsonl").read_bytes() == (first / "train.jsonl").read_bytes()


def test_the_base_writes_rows_where_no_url_is_given(tmp_path: Path, tiny: bases.Base) -> None:
    """A random model never ends its answer: every attempt is dropped, and said to be."""
    settings = {
        "synthesise": {
            "endpoint": {"max_tokens": 4},
            "paraphrase": {},
            "questions": {"documents": [handbook(tmp_path)]},
        }
    }
    after = grown(before(tmp_path), settings, base=tiny)
    assert reasons_of(after) == {"cut off at 4 tokens": 9}
    assert ledger(after, "paraphrase")["without_row"] == 8
    assert ledger(after, "paraphrase")["answered"] == 0


def test_an_endpoint_that_cannot_be_used_is_told_with_its_setting(tmp_path: Path, serve: Serve) -> None:
    with serve(lambda messages, seed: "no") as served, pytest.raises(ConfigError) as error:
        synthesise(before(tmp_path), served, paraphrase={}, endpoint={"model": "larger"})
    assert "data.grow.synthesise.endpoint.model" in str(error.value)


def test_new_rows_follow_the_rules_of_cleaning(tmp_path: Path, serve: Serve) -> None:
    """Near-duplicates are what cleaning holds for such."""

    def say(messages: list[dict[str, str]], seed: int) -> str:
        return messages[-1]["content"].rpartition("\n\n")[2].replace("free on", "free now on")

    with serve(say) as served:
        start = before(tmp_path)
        loose = synthesise(start, served, Clean(near_duplicates=None), paraphrase={})
        strict = synthesise(start, served, Clean(near_duplicates=0.6), paraphrase={})
    assert (len(new(loose)), len(new(strict))) == (8, 0)
    assert reasons_of(strict) == {"repeats a training row": 8}


def test_a_new_row_that_asks_what_a_benchmark_asks_is_dropped(tmp_path: Path, serve: Serve) -> None:
    asked = "On which of the decks may a dog travel free of charge with the ferry to Skerry, and until when?"
    (tmp_path / "public.jsonl").write_text(json.dumps({"prompt": f"{asked} Say it briefly.", "answer": "x"}) + "\n")
    pairs = [GOOD, {"question": asked, "answer": "On the lower deck."}]
    with serve(lambda messages, seed: json.dumps(pairs)) as served:
        clean = Clean(benchmarks=[tmp_path / "public.jsonl"])
        settings = {"documents": [handbook(tmp_path)], "grounded_from": 0.2}
        after = synthesise(before(tmp_path), served, clean, questions=settings)
    assert reasons_of(after) == {"in benchmark public.jsonl": 1}
    assert [r.messages[0]["content"] for r in new(after)] == [GOOD["question"]]


def test_no_more_pairs_are_kept_than_are_wanted(tmp_path: Path, serve: Serve) -> None:
    """A reply may bring several; what is too many is dropped, and no more is asked for than may be needed."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("amber", "birch", "cedar", "dusky", "ebony", "fawny"):
        (folder / f"{name}.md").write_text(f"The {name} boat leaves the {name} harbour at seven in the morning.\n")

    def say(messages: list[dict[str, str]], seed: int) -> str:
        [name] = re.findall(r"The (\w+) boat", messages[-1]["content"])
        asked = ("When does the {} boat leave?", "Is it the morning when the {} boat leaves?")
        return json.dumps([{"question": q.format(name), "answer": "At seven in the morning."} for q in asked])

    with serve(say) as served:
        start, settings = before(tmp_path), {"documents": [folder], "per_passage": 2}
        by_rows = synthesise(start, served, questions={**settings, "rows": 3})
        by_share = synthesise(start, served, questions=settings, max_share=0.3)
    assert (len(new(by_rows)), len(served.asked)) == (3, 2)
    assert len(new(by_share)) == 3
    assert reasons_of(by_rows) == {"more than are wanted": 1}
    assert ledger(by_rows, "questions")["stopped"] == "there are enough"


def test_seeds_end_when_the_model_repeats_itself_though_few_are_wanted(tmp_path: Path, serve: Serve) -> None:
    with serve(lambda messages, seed: json.dumps({"prompt": "What?", "answer": "That."})) as served:
        after = synthesise(before(tmp_path), served, seeds={"rows": 10})
    told = ledger(after, "seeds")
    assert (told["kept"], told["asked"]) == (1, 64)
    assert told["stopped"] == "saturated: 63 of the last 64 rows repeat others"


def test_seeds_end_when_no_row_may_have_more(tmp_path: Path, serve: Serve) -> None:
    numbers = iter(range(10**6))
    with serve(lambda messages, seed: json.dumps({"prompt": f"{next(numbers) * 7919:x}", "answer": "no"})) as served:
        after = synthesise(before(tmp_path), served, seeds={"rows": 500}, max_per_parent=2)
    assert Counter(r.parents[0] for r in new(after)) == dict.fromkeys((r.id for r in rows_of(after)[:8]), 2)
    assert ledger(after, "seeds")["stopped"] == "nothing was left to try"


def test_seeds_end_where_balancing_left_no_row(tmp_path: Path, serve: Serve) -> None:
    with serve(lambda messages, seed: json.dumps({"prompt": "What?", "answer": "That."})) as served:
        seeds = {"endpoint": {"url": served.url, "model": "small"}, "seeds": {"rows": 5}}
        weights = {f"Yes, {i}.": 0 for i in range(1, 9)}
        with pytest.raises(DataError, match="no training row is left"):
            grown(before(tmp_path), {"balance": {"weights": weights}, "synthesise": seeds})


def test_null_is_no_text(tmp_path: Path, serve: Serve) -> None:
    pairs = [{**GOOD, "question": None}, {**GOOD, "answer": None}]
    with serve(lambda messages, seed: json.dumps(pairs)) as served:
        after = synthesise(before(tmp_path), served, questions={"documents": [handbook(tmp_path)]})
    assert (new(after), reasons_of(after)) == ([], {"empty prompt": 1, "empty answer": 1})


def test_files_that_are_no_documents_are_told(tmp_path: Path, serve: Serve) -> None:
    folder = handbook(tmp_path)
    (folder / "map.png").write_bytes(b"picture")
    with serve(lambda messages, seed: json.dumps([GOOD])) as served:
        after = synthesise(before(tmp_path), served, questions={"documents": [folder]})
    assert after.summary["synthesise"]["sources"]["skipped"] == {"of a kind that holds no text": ["map.png"]}
    assert "1 skipped, of a kind that holds no text: `map.png`" in after.summary["headline"]


PERSON = row("I am Zoe Marlowe, where is my parcel 77?", "Soon.", 20, changes=["contains: person"])


def test_what_is_made_of_a_row_with_personal_data_is_noted_to_hold_some(tmp_path: Path, serve: Serve) -> None:
    """Nobody finds a misspelt name."""

    def say(messages: list[dict[str, str]], seed: int) -> str:
        return "Where is parcel 77, asks Zoe Marlowe?" if "other words" in messages[-1]["content"] else "no JSON"

    with serve(say) as served:
        kinds = {"noise": {}, "paraphrase": {}, "seeds": {"rows": 1, "examples": 1}}
        after = synthesise(splits(tmp_path, [PERSON]), served, **kinds)
    assert {r.shape: r.changes for r in new(after)} == dict.fromkeys(
        ("synthetic:paraphrase", "synthetic:noise"), PERSON.changes
    )
    assert {tuple(item["changes"]) for item in store.read_jsonl(after / "dropped.jsonl")} == {("contains: person",)}
    assert after.summary["changes"] == {"contains: person": 2}
    [warning] = after.summary["warnings"]
    assert warning == (
        f"training rows go to {served.url} with the personal data in them: person (1); "
        "data.clean.personal_data replaces it."
    )


def test_a_row_after_the_pattern_of_one_with_personal_data_holds_what_is_found_in_it(
    tmp_path: Path, serve: Serve
) -> None:
    numbers = iter(range(10**6))
    mail = "zoe@post.example.org"
    with serve(lambda *_: json.dumps({"prompt": f"Mail {mail} {next(numbers)}", "answer": "Yes."})) as served:
        [made] = new(synthesise(splits(tmp_path, [PERSON]), served, seeds={"rows": 1}))
        clean = Clean(personal_data="replace")
        [replaced] = new(synthesise(splits(tmp_path / "2", [PERSON]), served, clean, seeds={"rows": 1}))
    assert made.changes == ["contains: email"]
    assert "[EMAIL_1]" in replaced.messages[0]["content"]
