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
def same_direction() -> Compare:
    """The cosine of each pair is at least 0.999; `wanted` was computed in fp32 from the same values."""

    def compare(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> None:
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted):
            if a is not None and b is not None and b.norm() > 1e-4 * b.numel() ** 0.5:
                x, y = a.double().flatten(), b.double().flatten()
                assert torch.dot(x, y) >= 0.999 * x.norm() * y.norm()

    return compare
