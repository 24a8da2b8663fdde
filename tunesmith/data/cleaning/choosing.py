"""A model chooses among the answers that contradict one another, where a person would take too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tunesmith.core import store
from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.errors import settings_named
from tunesmith.core.records import Row
from tunesmith.data import judge
from tunesmith.data.cleaning import rubric
from tunesmith.data.cleaning.rubric import Choice
from tunesmith.data.traits import Places
from tunesmith.models.endpoint import Client

Choose = Callable[[list[list[int]]], Iterator[Choice]]
"""Of the places of rows that answer one prompt, which answers best, by its number."""


def chooser(endpoint: Endpoint | None, rows: Callable[[Places], Iterator[Row]]) -> Choose:
    def choose(contested: list[list[int]]) -> Iterator[Choice]:
        assert endpoint is not None, "checked with the project file"
        places = sorted(place for answering in contested for place in answering)
        of = dict(zip(places, rows(np.array(places, np.int64))))
        asked = (
            ("\n\n".join(rubric.conversation(of[its[0]])), [rubric.said(of[place].messages[-1]) for place in its])
            for its in contested
        )
        with (
            settings_named({"endpoint.": "data.clean.judge."}),
            Client(endpoint, store.cache_dir() / "replies") as client,
        ):
            yield from judge.choices(client, asked)

    return choose
