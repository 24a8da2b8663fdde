"""The rule by which a pair stands on its passage, case by case; and which sentences can be an answer."""

from __future__ import annotations

import pytest

from tunesmith.data.growing import grounded
from tunesmith.data.growing.questions import sentences

PASSAGE = """Travel costs are paid back within 30 days. The office in Bristol keeps receipts for two years. Lost keys
are reported to Ann at once."""
QUESTION, ANSWER = "When are travel costs paid back?", "Within 30 days."


def fault(question: str = QUESTION, answer: str = ANSWER, share: float = 0.8, titles: str = "Money") -> str:
    return grounded.fault(question, answer, PASSAGE, titles, share)


def test_what_stands_in_the_passage_is_left_alone() -> None:
    assert fault() == ""
    assert fault("How long does the office keep a receipt?", "For two years.") == ""
    assert fault("What happens to lost keys?", "They are reported to Ann at once.") == ""


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        (QUESTION, "Within 31 days.", "a number of the answer is not in the passage: 31"),
        ("Are costs above 20 pounds paid back?", ANSWER, "a number of the question is not in the passage: 20"),
        ("What does the office in Leeds keep?", "Receipts.", "a name of the question is not in the passage: leeds"),
        ("What becomes of lost keys?", "They are reported to Bob.", "a name of the answer is not in the passage: bob"),
        (QUESTION, "By cheque or voucher.", "words of the answer are not in the passage: chequ, voucher"),
        ("Which unicorn counts travel costs?", ANSWER, "words of the question are not in the passage: count, unicorn"),
        ("Are lost keys reported at once?", "Lost keys are reported at once.", "the question gives the answer away"),
        (
            "How many receipts does the office keep?",
            "The office in Bristol keeps receipts.",
            "the question asks for a number, and the answer tells none",
        ),
        (
            "How long are costs paid back within 30 days?",
            "Travel costs within 30 days.",
            "the question asks for a number, and the answer tells none",
        ),
    ],
)  # fmt: skip
def test_what_does_not_stand_is_named(question: str, answer: str, reason: str) -> None:
    assert fault(question, answer) == reason


def test_the_share_sets_how_much_may_be_new() -> None:
    asked = "Which refund is quick for travel costs?"
    assert fault(asked, share=0.8).startswith("words of the question")
    assert fault(asked, share=0.5) == ""


def test_titles_count_as_the_passage() -> None:
    assert fault("When does the treasury pay back travel costs?", titles="") != ""
    assert fault("When does the treasury paid back travel costs?", titles="The treasury") == ""


def test_how_much_of_a_sentence_a_question_has() -> None:
    assert grounded.covered("What about keys?", "Lost keys are reported to Ann.") == pytest.approx(0.25)
    assert grounded.covered("Anything?", "") == 0


def test_which_sentences_can_be_an_answer() -> None:
    text = """## The ferry

The ferry leaves at seven. It carries 84 passengers. Dogs
travel free of charge!

- The captain keeps the log.
- Short one.

| a table | with cells that look like a sentence. |
|---|---|

> A quote is no sentence of ours.

```
print("This is code and no sentence.")
```

Is a question an answer? The deck was painted by S. Holm in May and looks"""
    assert list(sentences(text)) == [
        "The ferry leaves at seven.",
        "Dogs travel free of charge!",
        "The captain keeps the log.",
    ]
