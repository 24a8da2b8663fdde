"""New training rows, and an honest ledger of what became of every attempt to make one.

An attempt is a row that was made, or something that a model is asked for. What comes of it has to pass, in this order:
it can be read as a row, it stands on its source, it keeps the rules of cleaning, it repeats no training row and no
other new one, and it is not like a row of the exam. Attempts are made in rounds, each as long as all before it, or as
long as it takes where few rows are missing. Growing ends when there are rows enough, when nothing is left to try, or
when many attempts brought little but repeats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.console import progress, say
from tunesmith.core.data_section import Synthesise
from tunesmith.core.errors import settings_named
from tunesmith.core.records import Row
from tunesmith.data.growing import known, makers, questions
from tunesmith.data.growing.admission import STAGE, Admission
from tunesmith.data.growing.attempts import Attempt, Unread
from tunesmith.data.growing.drops import Drops
from tunesmith.data.growing.seeds import Seeds
from tunesmith.models.base import Base
from tunesmith.models.endpoint import Asked, Client, Reply, Usage

_FIRST_ROUND = 64  # attempts; fewer tell little
_LONGEST_ROUND = 20_000
_SHOWN_CHARACTERS = 300  # of a reply that gave no row
_CONTAINS = "contains: "  # the note of personal data that stays in a row


@dataclass(frozen=True)
class Ground:
    """What new rows are made from and held against."""

    settings: Synthesise
    clean: Clean
    system: str | None
    seeds: Seeds
    exam: known.Exam
    drops: Drops


@dataclass
class Yield:
    """What came of one kind. Attempts: how many were made and answered, and how many of these brought no row. Rows, of
    which one attempt may bring several: how many passed each test. Tokens and cost are of this run alone; replies that
    an earlier run had are counted and cost nothing."""

    asked: int = 0
    answered: int = 0
    without_row: int = 0
    parsed: int = 0
    grounded: int = 0
    clean: int = 0
    unique: int = 0
    decontaminated: int = 0
    kept: int = 0
    stopped: str = "nothing was left to try"
    known_replies: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    cost_per_kept: float | None = None


def run(ground: Ground, base: Base | None, out: Path) -> dict[str, Any]:
    """Writes the new rows to `new.jsonl` of the workplace; every attempt and every row that came to nothing goes to the
    drops, and what cannot be read of documents to `quarantined_documents.jsonl` in `out`.

    Raises DataError where there is no document to ask about, and what the endpoint's client raises.
    """
    settings, work = ground.settings, ground.exam.work
    room = None
    if settings.max_share is not None:
        room = int(settings.max_share / (1 - settings.max_share) * len(ground.seeds) + 1e-9)
    asking = None
    if settings.questions:
        asking = questions.read(settings.questions, work, out / "quarantined_documents.jsonl")
    warnings = list(_warnings(ground))
    found: dict[str, Yield] = {}
    with ExitStack() as closing:
        closing.enter_context(settings_named({"endpoint.": "data.grow.synthesise.endpoint."}))
        file = closing.enter_context(open(work / "new.jsonl", "wb"))
        client = None
        if settings.asks:
            client = closing.enter_context(Client(settings.endpoint, store.cache_dir() / "replies", base))
        most = settings.max_per_parent
        admission = Admission(ground.clean, ground.seeds, ground.exam, most, file, ground.drops)
        for kind, attempts, limit in _kinds(ground, asking, admission):
            left = None if room is None else room - sum(its.kept for its in found.values())
            enough = min((n for n in (left, limit) if n is not None), default=None)
            growth = _Growth(kind, client, admission, settings.stop_at_repeats)
            found[kind] = growth.grow(attempts, enough)
    made = sum(its.parsed + its.without_row for its in found.values())
    kept, dropped = sum(its.kept for its in found.values()), ground.drops.of(STAGE)
    assert made == kept + dropped, f"{made:,} made, {kept:,} kept, {dropped:,} dropped"
    told: dict[str, Any] = {"sources": asking.told} if asking else {}
    told |= {"warnings": warnings, "kinds": {kind: asdict(its) for kind, its in found.items()}}
    return {"made": made, "kept": kept, **told}


def _warnings(ground: Ground) -> Iterator[str]:
    """Told before anything is sent: cleaning may have found personal data and left it where it is."""
    settings, kinds = ground.settings, Counter[str]()
    if settings.endpoint.url and (settings.seeds or settings.paraphrase or settings.back_translation):
        for row in ground.seeds.shuffled("personal data"):
            kinds.update(note.removeprefix(_CONTAINS) for note in row.changes if note.startswith(_CONTAINS))
    if kinds:
        listed = ", ".join(f"{kind} ({rows:,})" for kind, rows in sorted(kinds.items()))
        told = f"training rows go to {settings.endpoint.url} with the personal data in them: {listed}"
        say(f"  {told}; data.clean.personal_data replaces it")
        yield f"{told}; data.clean.personal_data replaces it."


def _kinds(
    ground: Ground, asking: questions.Asking | None, admission: Admission
) -> Iterator[tuple[str, Iterator[Attempt], int | None]]:
    """Each kind that is wanted: its name, what is tried, and how many rows of it are enough."""
    wanted, rows = ground.settings, ground.seeds
    if wanted.questions and asking:
        yield "questions", questions.attempts(wanted.questions, ground.system, asking), wanted.questions.rows
    if wanted.seeds:
        yield "seeds", makers.seeds(wanted.seeds, rows, admission.is_open), wanted.seeds.rows
    if wanted.paraphrase:
        yield "paraphrase", makers.paraphrase(wanted.paraphrase, rows), wanted.paraphrase.rows
    if wanted.back_translation:
        yield "back_translation", makers.back_translation(wanted.back_translation, rows), wanted.back_translation.rows
    if wanted.noise:
        yield "noise", makers.noise(wanted.noise, rows), wanted.noise.rows


def _enough(attempts: Iterator[Attempt], most: int, missing: int | None) -> Iterator[Attempt]:
    """At most so many attempts, and no more than it takes for the missing rows where each brings all that it may."""
    rows = 0
    for attempt in islice(attempts, most):
        yield attempt
        rows += attempt.rows
        if missing is not None and rows >= missing:
            return


@dataclass
class _Growth:
    """One kind of row as it grows."""

    kind: str
    client: Client | None
    admission: Admission
    stop_at_repeats: float
    found: Yield = field(default_factory=Yield)
    judged: Yield = field(default_factory=Yield)  # what had been found when it was last asked whether to go on

    def grow(self, attempts: Iterator[Attempt], enough: int | None) -> Yield:
        found, usage = self.found, replace(self.client.usage) if self.client else Usage()
        openly = (attempt for attempt in attempts if self.admission.is_open(attempt.parent))
        while enough is None or found.kept < enough:
            missing = None if enough is None else enough - found.kept
            round = list(_enough(openly, min(max(_FIRST_ROUND, found.asked), _LONGEST_ROUND), missing))
            if not round:
                break
            self._round(round, missing)
            if stopped := self._why_stop():
                found.stopped = stopped
                break
        else:
            found.stopped = "there are enough"
        self._account(usage, self.client.usage if self.client else Usage())
        return found

    def _round(self, round: list[Attempt], missing: int | None) -> None:
        """Makes these attempts, and keeps what is missing of what they bring."""
        found, admission, nearly = self.found, self.admission, self.kind != "noise"  # which is to be nearly the same
        found.asked += len(round)
        rows = [(attempt, row) for attempt, reply in self._replies(round) for row in self._rows(attempt, reply)]
        standing = [row for attempt, row in rows if self._stands(attempt, row)]
        cleaned = admission.cleaned(standing)
        unique = admission.unique(cleaned, nearly)
        unknown = admission.unknown(unique)
        kept = admission.admit(unknown, nearly, missing)
        found.parsed += len(rows)
        found.grounded += len(standing)
        found.clean += len(cleaned)
        found.unique += len(unique)
        found.decontaminated += len(unknown)
        found.kept += kept

    def _why_stop(self) -> str:
        """Why no more should be tried, by the attempts since this was last asked of enough of them; rounds are short
        where few rows are missing."""
        found, before = self.found, self.judged
        asked, clean, unique = found.asked - before.asked, found.clean - before.clean, found.unique - before.unique
        if asked < _FIRST_ROUND:
            return ""
        self.judged = replace(found)
        if clean and clean - unique >= self.stop_at_repeats * clean:
            return f"saturated: {clean - unique:,} of the last {clean:,} rows repeat others"
        return "" if found.kept > before.kept else f"none of the last {asked:,} attempts brought a row that is kept"

    def _replies(self, round: list[Attempt]) -> Iterator[tuple[Attempt, Reply | None]]:
        """Each attempt with the last reply to it; None where nothing was to be asked."""
        if self.client is None or not any(attempt.asked for attempt in round):
            yield from ((attempt, None) for attempt in round)
            return
        replies = self._ask(self.client, [attempt.asked for attempt in round if attempt.asked])
        second = [attempt.then(reply.text) for attempt, reply in zip(round, replies) if attempt.then and reply.text]
        again = iter(self._ask(self.client, second))
        for attempt, reply in zip(round, replies):
            yield attempt, next(again) if attempt.then and reply.text else reply

    def _ask(self, client: Client, asked: list[Asked]) -> list[Reply]:
        replies = []
        with progress(self.kind, len(asked), "replies") as bar:
            for reply in client.ask(asked):
                replies.append(reply)
                bar.advance(1)
        return replies

    def _rows(self, attempt: Attempt, reply: Reply | None) -> list[Row]:
        """The rows that came of an attempt; where none did, the attempt is dropped in their place."""
        found = self.found
        if reply is None or attempt.read is None:
            found.answered += 1
            return [attempt.row]
        if reply.text is None:
            found.without_row += 1
            self.admission.drop(attempt.row, reply.fault, "the model gave no answer that can be used")
            return []
        found.answered += 1
        try:
            return attempt.read(reply.text)
        except Unread as unread:
            found.without_row += 1
            self.admission.drop(attempt.row, unread.reason, unread.detail[:_SHOWN_CHARACTERS])
            return []

    def _stands(self, attempt: Attempt, row: Row) -> bool:
        if fault := attempt.fault(row):
            reason, _, detail = fault.partition(": ")
            self.admission.drop(row, reason, detail)
        return not fault

    def _account(self, before: Usage, now: Usage) -> None:
        found = self.found
        found.known_replies = now.cached - before.cached
        found.prompt_tokens = now.prompt_tokens - before.prompt_tokens
        found.answer_tokens = now.answer_tokens - before.answer_tokens
        found.cost = now.cost - before.cost
        found.cost_per_kept = found.cost / found.kept if found.kept else None
