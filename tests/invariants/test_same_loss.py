"""How a step is cut and packed changes neither loss nor gradient, and the loss is transformers' own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from tunesmith.core.step import Artifact
from tunesmith.kernels.apply import choose
from tunesmith.models import load, methods, packed
from tunesmith.models.base import Base
from tunesmith.models.tokens import Tokens
from tunesmith.train import loop
from tunesmith.train.objectives import sft

ROWS = list(range(8))
SETTINGS = loop.Settings(
    learning_rate=1e-3, epochs=1.0, batch_tokens=100_000, micro_batch_tokens=1, evaluations=0, patience=None,
    warmup=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=0)  # fmt: skip
KERNELS = choose(torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def tuned(base: Base) -> PeftModel:
    """The base with a LoRA whose B is not zero, so that every gradient flows."""
    assert base.folder is not None
    model = methods.attach(load.model(base.folder, "fp32", packed=True), methods.Method("lora", rank=4, alpha=8), 1)
    make = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=make)
    return model


@pytest.fixture(scope="module")
def tokens(dataset: Artifact) -> Tokens:
    return Tokens(dataset.folder, "train")


def loss_and_gradients(
    model: PeftModel, tokens: Tokens, micro_batch_tokens: int
) -> tuple[float, dict[str, torch.Tensor]]:
    run = loop.Run(packed.Scorer(model, KERNELS), sft.loss, replace(SETTINGS, micro_batch_tokens=micro_batch_tokens), 1)
    result = run.over(tokens, ROWS, learn=True)
    sums = zip(run.master.names, run.master.exact)
    return result.loss, {name: exact.grad / result.normaliser for name, exact in sums if exact.grad is not None}


@pytest.mark.slow
def test_packed_and_unpacked_give_the_same_loss_and_gradients(tuned: PeftModel, tokens: Tokens) -> None:
    """One pack of eight rows, eight passes of one row, and something between."""
    loss, gradients = loss_and_gradients(tuned, tokens, 100_000)
    assert len(gradients) == 2 * 7 * 30
    for micro_batch_tokens in (1, 250):
        other_loss, others = loss_and_gradients(tuned, tokens, micro_batch_tokens)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            assert (others[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.slow
def test_the_first_loss_is_that_of_plain_transformers(base: Base, tuned: PeftModel, tokens: Tokens) -> None:
    """transformers' own loss, row by row, weighted by label tokens, of a model that knows nothing of packing."""
    assert base.folder is not None
    plain = load.model(base.folder, "fp32")
    total = count = 0.0
    for i in ROWS:
        ids, learnt = (torch.from_numpy(array.copy())[None] for array in tokens.row(i))
        labels = ids.long().masked_fill(~learnt, -100)
        labelled = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(plain(input_ids=ids.long(), labels=labels).loss) * labelled
        count += labelled
    fresh = methods.attach(load.model(base.folder, "fp32", packed=True), methods.Method("lora", rank=4, alpha=8), 1)
    loss, _ = loss_and_gradients(fresh, tokens, 100_000)
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_rows_do_not_see_each_other(tuned: PeftModel, tokens: Tokens) -> None:
    """The log-probabilities of a row do not depend on its neighbours in the pack."""
    scorer, device = packed.Scorer(tuned, KERNELS), torch.device("cpu")
    with torch.no_grad():
        alone = scorer(packed.pack(tokens, [3], device))[0]
        batch = packed.pack(tokens, [7, 3, 5], device)
        together = scorer(batch)[0][batch.row_N == 1]
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


def test_a_model_with_another_head_is_refused(base: Base, tokens: Tokens) -> None:
    """A bias on the logits, which the packed head does not know, is found before training."""
    assert base.folder is not None
    model = load.model(base.folder, "fp32", packed=True)
    packed.require_same_loss(packed.Scorer(model, KERNELS), tokens)
    head = model.lm_head.weight
    model.lm_head = torch.nn.Linear(head.shape[1], head.shape[0])
    model.lm_head.weight = head
    with pytest.raises(packed.ModelError, match="cannot be trained packed"):
        packed.require_same_loss(packed.Scorer(model, KERNELS), tokens)
