"""Operations in both forms, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tunesmith.core import store
from tunesmith.kernels import native, plain
from tunesmith.kernels.plain import Operations


@pytest.fixture(scope="session")
def compiled() -> Operations:
    try:
        return native.operations(native.load(store.cache_dir() / "kernels"))
    except native.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session", params=["plain", "compiled"])
def operations(request: pytest.FixtureRequest) -> Operations:
    if request.param == "plain":
        return plain.OPERATIONS
    both: Operations = request.getfixturevalue("compiled")
    return both


Compare = Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]


@pytest.fixture(scope="session")
def same() -> Compare:
    """Equal to within 1e-5 of the largest value, each."""

    def compare(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> None:
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted):
            if a is None or b is None:
                assert a is b
            else:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))

    return compare


@pytest.fixture(scope="session")
def same_direction() -> Callable[..., None]:
    """The cosine of each pair is at least 0.999; `wanted` was computed in fp32 from the same values. A gradient of few
    values may be off by more where plain torch, in the same precision, is: three times as far as that at most."""

    def off(a: Tensor, b: Tensor) -> float:
        x, y = a.double().flatten(), b.double().flatten()
        return 1 - float(torch.dot(x, y) / (x.norm() * y.norm()))

    def compare(
        found: Sequence[Tensor | None], wanted: Sequence[Tensor | None], rounded: Sequence[Tensor | None] | None = None
    ) -> None:
        assert len(found) == len(wanted)
        for a, b, plainly in zip(found, wanted, rounded or wanted):
            if a is not None and b is not None and plainly is not None and b.norm() > 1e-4 * b.numel() ** 0.5:
                assert off(a, b) <= max(1e-3, 3 * off(plainly, b))

    return compare
