"""Rows that ask the same in other words and say the same: the later of two goes.

A prompt is a vector, and two prompts mean the same as far as the cosine of their vectors says. No vector tells "I lost
my card" from "I lost my phone" by itself, so that only rows are compared whose answers mean the same and whose prompts
agree in all but their words: side, system message, tools, numbers, negations. Within such a group all pairs are
compared, block by block; the time grows with the square of the largest group, not of the rows.

Vectors come from character 4-grams, each weighted by how rare it is, which need nothing and see words, not meanings;
from a table of word vectors that a package brings along, which see meanings, but not the order of words; or from a
server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core import store
from tunesmith.core.clean_section import SemanticDuplicates
from tunesmith.core.errors import ConfigError, ResourceError, settings_named
from tunesmith.core.records import Row
from tunesmith.data.sketches import Sets, Sketches
from tunesmith.data.traits import Finding, Places, Ruling, Traits, together_with

Vectors = Any  # a row for each text, of length 1: a float array, or scipy's csr_array, whose types are not seen
RowsAt = Callable[[Places], Iterator[Row]]
Embed = Callable[[Places], Vectors]

_COLUMNS = 1 << 20  # shingles are told apart by so many bits of their hash
_ROWS = 512  # that are compared with all before them at once
_BATCH = 256  # texts that become vectors at once
_MOST_DENSE, _MOST_SPARSE = 10**12, 10**10  # products of numbers that are about a minute's work


def embedder(settings: SemanticDuplicates | None, prompts: Sketches | None, rows: RowsAt, path: Path) -> Embed:
    """How rows become vectors, which may be written to the path. `prompts` are the rows' in their order."""

    def embed(places: Places) -> Vectors:
        assert settings is not None
        if settings.embedding == "characters":
            assert prompts is not None, "prompts were not sketched"
            return of_characters(prompts.sets, places)
        encode = of_words if settings.embedding == "words" else of_server(settings)
        return _on_disk(encode(_batches(map(_as_written, rows(places)))), len(places), path)

    return embed


def duplicates(
    traits: Traits, left: Places, embed: Embed, similarity: float, keep_equal: bool
) -> Iterator[Ruling | Finding]:
    """Drops a row when an earlier kept row has an answer of its meaning, a prompt of its kind, and a prompt whose
    vector has this cosine similarity with its own, or more. `keep_equal` spares prompts that are equal."""
    key_N = together_with(traits["kind"], traits["meaning"])[left]
    _, group_of, sizes = np.unique(key_N, return_inverse=True, return_counts=True)
    several = sizes[group_of] > 1
    places, group_of = left[several], group_of[several]
    order = np.argsort(group_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1) if len(order) else []
    found = 0
    if groups:
        vectors = embed(places)
        _require_time(vectors, groups)
        prompts = traits["prompt"][places] if keep_equal else None
        for group in groups:
            for later, earlier, cosine in _repeats(vectors, group, similarity, prompts):
                found += 1
                detail = f"{cosine:.2f} in meaning to {{}}"
                yield Ruling(int(places[later]), int(places[earlier]), "semantic duplicate", detail)
    facts = {"compared": len(places), "groups": len(groups), "largest_group": int(sizes.max(initial=0)), "rows": found}
    yield Finding("semantic_duplicates", facts, [])


def of_characters(sets: Sets, places: Places) -> Vectors:
    """TF-IDF over hashed character 4-grams: a shingle that many prompts have counts for little."""
    from scipy.sparse import csr_array  # a fifth of a second, for those who ask for it

    rows_N = np.zeros(_COLUMNS, np.int64)
    for start in range(0, len(sets.shingles_S), _COLUMNS):
        rows_N += np.bincount(sets.shingles_S[start : start + _COLUMNS] % _COLUMNS, minlength=_COLUMNS)
    rarity = (np.log((1 + len(sets.ends_N)) / (1 + rows_N)) + 1).astype(np.float32)
    sizes, starts = sets.sizes_N[places], sets.starts_N[places]
    ends = np.cumsum(sizes)
    columns = (sets.shingles_S[np.repeat(starts - ends + sizes, sizes) + np.arange(sizes.sum())] % _COLUMNS).astype(
        np.int32
    )
    weights = rarity[columns]
    norms = np.sqrt(np.add.reduceat(weights**2, ends - sizes))
    return csr_array((weights / np.repeat(norms, sizes), columns, np.concatenate([[0], ends])), (len(places), _COLUMNS))


def of_words(batches: Iterable[list[str]]) -> Iterator[NDArray[np.float32]]:
    """By the word vectors that WordLlama's package brings along: the mean of a prompt's."""
    try:
        import wordllama  # an extra: half a second, and 18 MB
    except ImportError:
        raise ConfigError(
            "data.clean.semantic_duplicates.embedding: `words` needs the package wordllama",
            "it is not installed",
            "pip install 'tunesmith[semantic]', or write `embedding: characters`",
        ) from None
    inside = Path(wordllama.__file__).parent  # where its files are; by itself it would look for them on the network
    model = wordllama.WordLlama.load(cache_dir=inside, disable_download=True)
    for batch in batches:
        yield model.embed(batch)


def of_server(settings: SemanticDuplicates) -> Callable[[Iterable[list[str]]], Iterator[NDArray[np.float32]]]:
    def encode(batches: Iterable[list[str]]) -> Iterator[NDArray[np.float32]]:
        from tunesmith.models.embeddings import Embeddings  # a server is asked by few

        assert settings.endpoint is not None, "checked with the project file"
        with (
            settings_named({"endpoint.": "data.clean.semantic_duplicates.endpoint."}),
            Embeddings(settings.endpoint, store.cache_dir() / "embeddings") as client,
        ):
            yield from client.of(batches)

    return encode


def _as_written(row: Row) -> str:
    return "\n".join(message["content"] for message in row.prompt if message["role"] != "system")


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _on_disk(batches: Iterable[NDArray[np.float32]], rows: int, path: Path) -> Vectors:
    """All of them, of length 1, in a file: a million would not fit into memory beside all else."""
    written, dimensions = 0, 0
    with open(path, "wb") as file:
        for batch in batches:
            lengths = np.linalg.norm(batch, axis=1, keepdims=True)
            (batch / np.maximum(lengths, 1e-12)).astype(np.float32).tofile(file)
            written, dimensions = written + len(batch), batch.shape[1]
    assert written == rows, f"{written} vectors of {rows} texts"
    return np.memmap(path, np.float32, "r", shape=(rows, dimensions))


def _repeats(
    vectors: Vectors, group: Places, similarity: float, prompts: NDArray[np.uint64] | None
) -> Iterator[tuple[int, int, float]]:
    """Rows of a group that are like an earlier one that stays: the first such one, and how alike they are."""
    kept = group[:0]
    for start in range(0, len(group), _ROWS):
        block = group[start : start + _ROWS]
        before = np.concatenate([kept, block])
        cosines = _cosines(vectors, block, before)
        alike = cosines >= similarity - 1e-6
        if prompts is not None:
            alike &= prompts[block][:, None] != prompts[before][None]
        stays = np.ones(len(before), bool)
        for i, row in enumerate(block.tolist()):
            earlier = np.flatnonzero(alike[i, : len(kept) + i] & stays[: len(kept) + i])
            if len(earlier):
                stays[len(kept) + i] = False
                yield row, int(before[earlier[0]]), float(cosines[i, earlier[0]])
        kept = before[stays]


def _cosines(vectors: Vectors, these: Places, others: Places) -> NDArray[np.float32]:
    product = vectors[these] @ vectors[others].T
    return product if isinstance(product, np.ndarray) else product.toarray()


def _require_time(vectors: Vectors, groups: list[Places]) -> None:
    """Refuses what would take many minutes, before it begins."""
    sizes = np.array([len(group) for group in groups])
    if isinstance(vectors, np.ndarray):
        products, most = int((sizes.astype(np.float64) ** 2).sum() / 2 * vectors.shape[1]), _MOST_DENSE
    else:
        each = (np.bincount(vectors[group].indices).astype(np.float64) ** 2 for group in groups)
        products, most = int(sum(columns.sum() for columns in each) / 2), _MOST_SPARSE
    if products > most:
        raise ResourceError(
            f"semantic duplicates among {sizes.sum():,} rows take {products / most:,.1f} times as long as is allowed",
            f"{sizes.max():,} of them have one answer, and each is compared with all of these: {products:.2g} products",
            "take data.clean.semantic_duplicates out, or look for them in fewer rows",
        )
