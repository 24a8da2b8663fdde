"""Rows laid end to end, and the log-probabilities that a model gives to their learnt tokens.

Shapes: T tokens in the packed sequence, N of them learnt, R rows. A row's first token is never a target, so that no row
is predicted from the end of the one before it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from tunesmith.core import store
from tunesmith.core.console import say
from tunesmith.core.errors import ModelError
from tunesmith.kernels.apply import Kernels, choose
from tunesmith.kernels.plain import Documents
from tunesmith.models import fused
from tunesmith.models.tokens import LEAST_SHARED, Tokens

_DROPOUTS = {  # as the families' configs name it
    "attention_dropout", "attn_pdrop", "dropout", "embd_pdrop", "embedding_dropout", "hidden_dropout", "resid_dropout",
    "resid_pdrop", "residual_dropout"}  # fmt: skip
_OF_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # what configs call a change of them
_TARGETS, _COMPARED = 32, 8  # that a comparison of losses takes, in so many rows at most: one alone is mostly rounding
_SIDE_BY_SIDE = 512  # tokens, padding included, that transformers computes at once to compare


@dataclass(frozen=True)
class Packed:
    """A micro-batch: ids and positions of T tokens, where the N targets are predicted from, what they are and of which
    row; `lengths` are those of the R rows. Where `documents` share a beginning, T is less than the lengths' sum; a last
    few tokens belong to no row."""

    ids_1T: Tensor
    positions_1T: Tensor
    at_N: Tensor
    targets_N: Tensor
    row_N: Tensor
    lengths: list[int]
    documents: Documents


def pack(tokens: Tokens, rows: list[int], device: torch.device, *, share: bool = True) -> Packed:
    """Rows end to end. With `share`, what they all begin with (a system message, say) stands there once, if no token of
    it is learnt: every row sees it, and the gradient that reaches it is the sum over the rows, as if each had its own.

    The last row runs on over a few tokens that nothing follows, up to one of 16 lengths between two powers of two. For
    every new shape of a matrix product, oneDNN makes machine code and never lets go of all of it (docs/log.md).
    """
    parts = [tokens.row(i) for i in rows]
    shared = _shared_beginning(parts) if share else 0
    ids, positions, at, targets, row_of = [], [], [], [], []
    if shared:
        ids.append(parts[0][0][:shared])
        positions.append(np.arange(shared))
    end = shared
    for row, (row_ids, learnt) in enumerate(parts):
        place = np.arange(len(row_ids))
        where = np.where(place < shared, place, place - shared + end)  # of each of the row's tokens in the pack
        target = np.flatnonzero(learnt[1:]) + 1  # a row's first token is never one
        at.append(where[target - 1])
        targets.append(row_ids[target])
        row_of.append(np.full(len(target), row))
        ids.append(row_ids[shared:])
        positions.append(place[shared:])
        end += len(row_ids) - shared
    lengths = [len(row_ids) for row_ids, _ in parts]
    own = [length - shared for length in lengths]
    tail = rounded(end) - end
    ids.append(np.zeros(tail, dtype=np.int32))
    positions.append(np.zeros(tail, dtype=np.int64))
    own[-1] += tail

    def tensor(arrays: list[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64)).to(device)

    documents = Documents([shared, *own] if shared else own, bool(shared))
    return Packed(
        tensor(ids)[None], tensor(positions)[None], tensor(at), tensor(targets), tensor(row_of), lengths, documents
    )


def rounded(length: int) -> int:
    """The next multiple of a sixteenth of the power of two below."""
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def _shared_beginning(parts: list[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> int:
    """How many tokens all rows begin with, none of them learnt; 0 where sharing would save next to nothing."""
    ids = parts[0][0]
    longest = min(len(row_ids) for row_ids, _ in parts) - 1  # each row keeps a token of its own
    same = np.ones(max(0, longest), dtype=bool)
    for row_ids, row_learnt in parts:
        same &= (row_ids[: len(same)] == ids[: len(same)]) & ~row_learnt[: len(same)]
    shared = len(same) if same.all() else int(same.argmin())
    return shared if len(parts) > 1 and shared >= LEAST_SHARED else 0


def beginnings(tokens: Tokens, rows: list[int], like: list[int]) -> dict[int, int]:
    """Of each of these rows, with how many of its tokens it begins as the rows `like` all do: rows share at least the
    least of these numbers, and may share more."""
    shared = _shared_beginning([tokens.row(i) for i in like])
    ids, found = tokens.row(like[0])[0][:shared], dict[int, int]()
    for i in rows:
        row_ids, learnt = (array[: min(shared, len(array) - 1)] for array in tokens.row(i))
        same = (row_ids == ids[: len(row_ids)]) & ~learnt
        count = len(same) if same.all() else int(same.argmin())
        found[i] = count if count >= LEAST_SHARED else 0
    return found


class Scorer(nn.Module):
    """A causal model as training sees it: a packed micro-batch in, the log-probability of each target out.

    It is a module of its own so that whatever wraps modules (data-parallel, sharding) finds all work in `forward`.
    Virtual tokens of prompt tuning stand before all rows, as one more shared beginning; prefix tuning's keys and values
    go to the attention layers as they are.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, kernels: Kernels, notes: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.kernels, self.notes = model, kernels, notes

    @property
    def causal(self) -> PreTrainedModel:
        """transformers' own model, inside PEFT's wrapper where there is one."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """Log-probability (fp32, N) of each target, and whether it is the likeliest token. The head meets targets
        only."""
        positions_1T, at_N, documents = batch.positions_1T, batch.at_N, batch.documents
        inputs, prefixes = {"input_ids": batch.ids_1T}, None
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            prompt = self.model.get_prompt(batch_size=1)
            if isinstance(prompt, Cache):
                prefixes = [(layer.keys[0], layer.values[0]) for layer in prompt.layers]
                positions_1T = positions_1T + prefixes[0][0].shape[1]
            else:
                embedded_1TD = self.causal.get_input_embeddings()(batch.ids_1T)
                inputs = {"inputs_embeds": torch.cat([prompt.to(embedded_1TD.dtype), embedded_1TD], 1)}
                positions_1T, at_N, documents = _behind(prompt.shape[1], positions_1T, at_N, documents)
        hidden_TD = self.causal.base_model(
            **inputs,
            position_ids=positions_1T,
            use_cache=False,
            documents=documents,
            kernels=self.kernels,
            prefixes=prefixes,
        ).last_hidden_state[0]
        N, head = len(at_N), self.causal.get_output_embeddings()
        beyond = (0, rounded(N) - N)  # more of token 0, which nobody reads
        at_N, targets_N = (torch.nn.functional.pad(x, beyond) for x in (at_N, batch.targets_N))
        logp_N, correct_N = self.kernels.label_logprobs(hidden_TD.index_select(0, at_N), head.weight, targets_N)
        return logp_N[:N], correct_N[:N]


def fast(model: PreTrainedModel | PeftModel, *, fuse_layers: bool = True) -> Scorer:
    """The scorer with the fastest kernels that agree with plain torch here; its `notes` say what had to be left out."""
    kernels = choose(model.dtype, model.device, store.cache_dir() / "kernels")
    return Scorer(model, kernels, [*kernels.notes, *(fused.fuse(model) if fuse_layers else []), *_dropout(model)])


def _dropout(model: PreTrainedModel | PeftModel) -> list[str]:
    """A note where the base was made to drop some of its activations in training: ours drops none."""
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config.to_dict()
    shares = {name: v for name, v in config.items() if name in _DROPOUTS and isinstance(v, float) and v}
    told = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    return [f"the base's dropout is off ({told}): a step can be taken again exactly"] if shares else []


def _behind(count: int, positions_1T: Tensor, at_N: Tensor, documents: Documents) -> tuple[Tensor, Tensor, Documents]:
    """Positions, places and documents of a pack that comes after `count` virtual tokens, which all rows share."""
    first = torch.arange(count, device=positions_1T.device)[None]
    lengths = documents.lengths
    if documents.shared:
        behind = [lengths[0] + count, *lengths[1:]]
    else:
        behind = [count, *lengths]
    return torch.cat([first, positions_1T + count], 1), at_N + count, Documents(behind, True)


@torch.no_grad()
def require_same_loss(scorer: Scorer, tokens: Tokens) -> None:
    """Compares the loss of short rows with transformers' own; raises ModelError where this architecture needs more than
    we do (a cap or a bias on its logits, say), or where its rows do not stay apart."""
    model = scorer.causal
    _require_fixed_positions(model, max(tokens.lengths))
    shortest = heapq.nsmallest(_COMPARED, range(len(tokens)), key=lambda i: tokens.lengths[i])
    two = pack(tokens, (shortest * 2)[:2], model.device, share=False)
    try:
        _require_rows_apart(scorer, two)
    except (TypeError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be trained packed",
            f"it does not let its attention be replaced ({error})",
            "choose another base (`tunesmith models`), and report this architecture",
        ) from error
    _require_plain_logits(model)
    rows = shortest[:1]
    while tokens.learnt_tokens(rows) < _TARGETS and len(rows) < len(shortest):
        rows = shortest[: len(rows) + 1]
    ours = -scorer(pack(tokens, rows, model.device))[0].mean()
    theirs = _own_loss(model, [pack(tokens, [row], model.device) for row in rows])
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.03
    if not abs(ours - theirs) <= tolerance * max(1.0, float(theirs)):  # not a number is no agreement
        raise ModelError(
            f"{type(model).__name__} cannot be trained packed",
            f"its loss on the shortest rows is {float(theirs):.4f} by its "
            f"own forward pass and {float(ours):.4f} by the packed one",
            "choose another base (`tunesmith models`), and report this architecture",
        )


def _require_fixed_positions(model: PreTrainedModel, longest: int) -> None:
    """Some rotary embeddings turn by other angles in a pass whose positions go past a limit (LongRoPE, dynamic NTK):
    one long row would then change all others."""
    config = model.config.get_text_config()
    told = config.to_dict().get("rope_parameters") or {}
    for rope in (told, *(part for part in told.values() if isinstance(part, dict))):
        if rope.get("rope_type") not in ("longrope", "dynamic"):
            continue
        limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if longest > limit:
            raise ModelError(
                f"rows of {longest:,} tokens cannot be trained beside shorter ones",
                f"past {limit:,} tokens this model turns the positions of all rows of a pass by other angles "
                f"({rope['rope_type']})",
                f"set data.format.max_tokens to {limit}",
            )


def _require_plain_logits(model: PreTrainedModel) -> None:
    """Ours are products with the head's weight and nothing else. What a fresh model adds to them may be too little for
    the comparison of losses to show."""
    config = model.config.get_text_config().to_dict()
    more = [f"{name} {config[name]:g}" for name in _OF_LOGITS if config.get(name) not in (None, 1)]
    if "bias" in dict(model.get_output_embeddings().named_parameters()):
        more.append("a bias")
    if more:
        raise ModelError(
            f"{type(model).__name__} cannot be trained packed",
            f"its logits have {' and '.join(more)}, which ours have not",
            "choose another base (`tunesmith models`), and report this architecture",
        )


def _own_loss(model: PreTrainedModel, rows: list[Packed]) -> Tensor:
    """By transformers' own forward pass with eager attention, the mean over all targets. Short rows lie side by side,
    padded at their ends, which no token before them sees."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    loss, longest = torch.zeros((), device=model.device), max(row.ids_1T.shape[1] for row in rows)
    together = max(1, _SIDE_BY_SIDE // longest)
    for some in (rows[at : at + together] for at in range(0, len(rows), together)):
        ids_RT = nn.utils.rnn.pad_sequence([row.ids_1T[0] for row in some], batch_first=True)
        for logits_TV, row in zip(model(input_ids=ids_RT, use_cache=False).logits, some):
            loss += nn.functional.cross_entropy(logits_TV[row.at_N].float(), row.targets_N, reduction="sum")
    model.set_attn_implementation(implementation)
    return loss / sum(len(row.targets_N) for row in rows)


def _require_rows_apart(scorer: Scorer, batch: Packed) -> None:
    """What a token is predicted as must not change with the row before its own. Where layers carry a state along the
    sequence (convolutions, recurrent layers), it does."""
    first, second, ids_1T = batch.documents.lengths[0], sum(batch.lengths), batch.ids_1T
    at_N = torch.arange(first, second - 1, device=ids_1T.device)
    of_second = replace(batch, at_N=at_N, targets_N=ids_1T[0, at_N + 1], row_N=torch.ones_like(at_N))
    others_1T = ids_1T.clone()
    others_1T[0, :first] = (others_1T[0, :first] + 1) % scorer.causal.get_input_embeddings().num_embeddings
    behind_one, behind_other = scorer(of_second)[0], scorer(replace(of_second, ids_1T=others_1T))[0]
    if not torch.isfinite(behind_one).all():
        raise ModelError(
            "the base's own loss is not a number",
            f"on its shortest rows, in {str(scorer.causal.dtype).removeprefix('torch.')}; weights may be broken",
            "set train.precision to fp32; if it stays so, fetch or save the base again",
        )
    if not torch.allclose(
        behind_one, behind_other, rtol=0, atol=1e-4 if scorer.causal.dtype == torch.float32 else 0.02
    ):
        raise ModelError(
            f"{type(scorer.causal).__name__} cannot be trained packed",
            "its layers carry something from one row to the next: a state, or attention of their own",
            "choose another base (`tunesmith models`), and report this architecture",
        )


@torch.no_grad()
def row_nlls(
    model: PreTrainedModel, tokens: Tokens, rows: list[int], together: int = 16
) -> Iterator[tuple[float, int]]:
    """Negative log-likelihood in nats of each row's targets, and the number of them; `together` rows share a pass."""
    scorer = fast(model)
    for note in scorer.kernels.notes:
        say(f"  {note}")
    for at in range(0, len(rows), together):
        batch = pack(tokens, rows[at : at + together], model.device)
        row_N, nll_N = batch.row_N.cpu(), -scorer(batch)[0].double().cpu()
        sums_R = torch.zeros(len(batch.lengths), dtype=torch.float64).index_add_(0, row_N, nll_N)
        yield from zip(sums_R.tolist(), torch.bincount(row_N, minlength=len(batch.lengths)).tolist())
