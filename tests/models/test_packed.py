"""Packs: what a shared beginning saves and what it must not change; virtual tokens give what PEFT's own pass gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.models import attention, packed
from tunesmith.models.tokens import Tokens

CPU = torch.device("cpu")


class Rows(Tokens):
    """Rows given as (ids, where learning begins)."""

    def __init__(self, rows: list[tuple[list[int], int]]) -> None:
        self.ids = np.concatenate([np.array(ids, dtype=np.int32) for ids, _ in rows])
        self.learnt = np.concatenate([np.arange(len(ids)) >= start for ids, start in rows])
        self.ends = np.cumsum([len(ids) for ids, _ in rows])


BEGINNING = list(range(10, 20))
ALIKE = Rows([([*BEGINNING, 1, 2, 3, 4], 12), ([*BEGINNING, 5, 6, 7], 10), ([*BEGINNING, 1, 2, 8, 9, 9, 9], 13)])


def model(config: Any = None) -> Any:
    torch.manual_seed(0)
    attention.register()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_key_value_heads=2, tie_word_embeddings=True, **shape))
    made.set_attn_implementation(attention.NAME)
    return made if config is None else get_peft_model(made, config)


def logprobs_and_gradients(scorer: packed.Scorer, batch: packed.Packed) -> tuple[Tensor, dict[str, Tensor]]:
    logp, _ = scorer(batch)
    named = {name: p for name, p in scorer.model.named_parameters() if p.requires_grad}
    weights = torch.linspace(0.5, 1.5, len(logp))
    return logp.detach(), dict(zip(named, torch.autograd.grad((logp * weights).sum(), list(named.values()))))


def test_a_shared_beginning_stands_once() -> None:
    batch = packed.pack(ALIKE, [0, 1, 2], CPU)
    assert batch.documents.lengths == [10, 4, 3, 6]
    assert batch.documents.shared
    assert batch.ids_1T[0].tolist() == [*BEGINNING, 1, 2, 3, 4, 5, 6, 7, 1, 2, 8, 9, 9, 9]
    assert batch.positions_1T[0, 10:].tolist() == [10, 11, 12, 13, 10, 11, 12, 10, 11, 12, 13, 14, 15]
    assert batch.lengths == [14, 13, 16]
    assert batch.targets_N.tolist() == [3, 4, 5, 6, 7, 9, 9, 9]
    assert batch.at_N.tolist() == [11, 12, 9, 14, 15, 19, 20, 21]  # row 1 is predicted from the beginning's last token
    assert batch.row_N.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


def test_the_beginning_of_all_rows_is_known() -> None:
    assert (ALIKE.beginning, ALIKE.own) == (10, [4, 3, 6])
    short = Rows([([*BEGINNING[:9], 1, 2], 9), ([*BEGINNING, 1], 9)])
    assert (short.beginning, short.own) == (9, [2, 2])
    assert Rows([([*BEGINNING, 1], 10), ([*BEGINNING, 2], 4)]).beginning == 0  # learnt where it would be shared
    assert Rows([([*BEGINNING, 1], 10), ([*BEGINNING[:7], 2, 2], 8)]).beginning == 0  # too short to be worth it
    assert Rows([(BEGINNING, 10), ([*BEGINNING, 1], 10)]).beginning == 9  # each row keeps a token of its own
    assert Rows([([*BEGINNING, 1], 10)]).beginning == 0


@pytest.mark.parametrize(("rows", "why"), [
    ([0], "one row"), ([0, 3], "a short beginning"), ([0, 4], "a learnt beginning")])  # fmt: skip
def test_what_is_not_shared(rows: list[int], why: str) -> None:
    more = Rows([
        ([*BEGINNING, 1, 2, 3, 4], 12), ([*BEGINNING, 5, 6, 7], 10), ([*BEGINNING, 1, 2], 11),
        ([*BEGINNING[:7], 1, 2, 3], 8), ([*BEGINNING, 1, 2, 3], 5)])  # fmt: skip
    assert not packed.pack(more, rows, CPU).documents.shared, why


@settings(max_examples=25, deadline=None)
@given(
    common=st.integers(0, 14),
    tails=st.lists(st.tuples(st.integers(2, 9), st.integers(1, 8)), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_sharing_changes_neither_loss_nor_gradient(common: int, tails: list[tuple[int, int]], seed: int) -> None:
    draw = np.random.default_rng(seed)
    beginning = draw.integers(0, 97, common).tolist()
    rows = Rows([([*beginning, *draw.integers(0, 97, n).tolist()], common + min(at, n - 1)) for n, at in tails])
    scorer, every = packed.fast(model()), list(range(len(tails)))
    once = logprobs_and_gradients(scorer, packed.pack(rows, every, CPU))
    repeated = logprobs_and_gradients(scorer, packed.pack(rows, every, CPU, share=False))
    torch.testing.assert_close(once[0], repeated[0], rtol=1e-5, atol=1e-5)
    for name, wanted in repeated[1].items():
        torch.testing.assert_close(once[1][name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()), msg=name)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_give_what_peft_gives(kind: Any, share: bool) -> None:
    tuned = model(kind(task_type="CAUSAL_LM", num_virtual_tokens=5))
    batch = packed.pack(ALIKE, [0, 1, 2], CPU, share=share)
    logp, gradients = logprobs_and_gradients(packed.fast(tuned), batch)
    assert sum(p.requires_grad for p in tuned.parameters()) == len(gradients) == 1
    tuned.get_base_model().set_attn_implementation("eager")
    own = []
    for i in range(3):
        ids, learnt = (torch.from_numpy(array.copy()) for array in ALIKE.row(i))
        logits = tuned(input_ids=ids.long()[None], attention_mask=torch.ones(1, len(ids))).logits[0, -len(ids) : -1]
        at = learnt[1:]
        own.append(logits.log_softmax(-1)[at].gather(1, ids[1:][at].long()[:, None])[:, 0])
    wanted = torch.cat(own)
    torch.testing.assert_close(logp, wanted.detach(), rtol=1e-4, atol=1e-5)
    loss = (wanted * torch.linspace(0.5, 1.5, len(wanted))).sum()
    (name,) = gradients
    (gradient,) = torch.autograd.grad(loss, [p for p in tuned.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("config", [None, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")], ids=str)
def test_tokens_that_round_a_pack_up_change_nothing(monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    """Neither log-probabilities nor gradients, those of embeddings and head included."""
    draw = np.random.default_rng(0)
    rows = Rows([(draw.integers(0, 97, length).tolist(), 3) for length in (37, 90, 71, 102)])
    scorer = packed.fast(model(config))
    batch = packed.pack(rows, [0, 1, 2, 3], CPU)
    assert sum(batch.lengths) == 300
    assert batch.ids_1T.shape == batch.positions_1T.shape == (1, 304)
    assert sum(batch.documents.lengths) == 304
    rounded = logprobs_and_gradients(scorer, batch)
    monkeypatch.setattr(packed, "rounded", lambda length: length)
    plain = logprobs_and_gradients(scorer, packed.pack(rows, [0, 1, 2, 3], CPU))
    assert len(rounded[0]) == 300 - 4 * 3
    torch.testing.assert_close(rounded[0], plain[0], rtol=1e-5, atol=1e-6)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(rounded[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
def test_rows_side_by_side_are_compared_by_their_own_targets(
    monkeypatch: pytest.MonkeyPatch, side_by_side: int
) -> None:
    draw, causal = np.random.default_rng(0), model()
    rows = Rows([(draw.integers(0, 97, length).tolist(), start) for length, start in ((9, 3), (40, 38), (100, 7))])
    each = [packed.pack(rows, [i], CPU) for i in range(3)]
    monkeypatch.setattr(packed, "_SIDE_BY_SIDE", side_by_side * 100)
    found = packed._own_loss(causal, each)
    alone = sum(packed._own_loss(causal, [row]) * len(row.targets_N) for row in each) / (6 + 2 + 93)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=0)
    assert causal.config._attn_implementation == attention.NAME


@given(st.integers(1, 100_000))
def test_packs_have_few_lengths(length: int) -> None:
    found = packed.rounded(length)
    assert length <= found <= length * 17 / 16
    assert packed.rounded(found) == found
    below = 1 << (length.bit_length() - 1)
    assert len({packed.rounded(n) for n in range(below, min(2 * below, below + 4000))}) <= 17
