"""How answers begin: rows that want nothing are counted, and a model that would answer with nothing is found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith.models.packed import Packed, Scorer, pack
from tunesmith.models.tokens import Tokens
from tunesmith.train import answers

END, OTHER_END = 2, 3


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """Four rows: (prompt, answer); the second and the last want only an end token."""
    rows = [([5, 6, 7], [8, 9, END]), ([5, 6], [END]), ([7], [8, END, 5, 9, END]), ([6, 5], [OTHER_END])]
    np.save(tmp_path / "train.ids.npy", np.array([t for row in rows for part in row for t in part], dtype=np.int32))
    learnt = [flag for prompt, answer in rows for flag in [False] * len(prompt) + [True] * len(answer)]
    np.save(tmp_path / "train.learnt.npy", np.array(learnt))
    np.save(tmp_path / "train.ends.npy", np.cumsum([len(p) + len(a) for p, a in rows]))
    return Tokens(tmp_path, "train")


def test_rows_that_want_only_an_end_token(tokens: Tokens) -> None:
    assert answers.only_end(tokens, [END]).tolist() == [False, True, False, False]
    assert answers.only_end(tokens, [END, OTHER_END]).tolist() == [False, True, False, True]


class Answers(torch.nn.Module):
    """A model whose likeliest next token depends on the last one alone; it takes the place of a real one so that the
    share is known."""

    def __init__(self, following: dict[int, int]) -> None:
        super().__init__()
        self.following, self.causal = following, torch.nn.Linear(1, 1)
        self.causal.device = torch.device("cpu")  # type: ignore[assignment]

    def forward(self, batch: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        likeliest = torch.tensor([self.following[int(i)] for i in batch.ids_1T[0, batch.at_N]])
        return torch.zeros(len(likeliest)), likeliest == batch.targets_N


@pytest.mark.parametrize(("following", "share"), [({7: 8}, 0.0), ({7: END}, 1.0), ({7: OTHER_END}, 1.0)], ids=str)
def test_answers_that_end_at_once_are_counted(tokens: Tokens, following: dict[int, int], share: float) -> None:
    """Only the rows that want an answer are asked: the first and the third, whose prompts end with 7."""
    model: Scorer = Answers(following)  # type: ignore[assignment]
    assert answers.asked(tokens, [END, OTHER_END]) == [0, 2]
    found = answers.end_only([END, OTHER_END], model, pack(tokens, [0, 2], torch.device("cpu")))
    assert (found.metrics["end_only"], found.normaliser, float(found.sum)) == (2 * share, 2, 0.0)


def test_where_no_row_wants_an_answer_none_is_asked(tokens: Tokens) -> None:
    assert answers.asked(tokens, [END, OTHER_END, 8]) == []
