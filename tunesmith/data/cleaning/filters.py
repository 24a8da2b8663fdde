"""Rows that are well-formed and yet not wanted: too short or too long, repetitive, in another language, toxic.

All of them are off until the project asks for them, as each may be wrong for a task: a classifier's answers are one
word, a poem repeats itself, a translator answers in another language, a moderator's examples are toxic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core.clean_section import Length, Repetition, Toxicity
from tunesmith.core.errors import ConfigError
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.data import plugin
from tunesmith.data.cleaning.answers import parse_json

_RUN_WORDS = 5  # in a run that counts as repeated
_FEW_WORDS = 20  # of a text in which a sentence may well be said twice
_ENOUGH_LETTERS, _ENOUGH_WORDS = 20, 4  # to tell a language by
_SURE = 0.7  # that it is a certain other language
_AT_ONCE = 1_000  # rows whose texts are scored together

_WORD = re.compile(r"\w+")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+", re.DOTALL)
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SENTENCE = re.compile(r"[^.!?\n]+")


def length(rows: Iterable[Row], limits: Length) -> Iterator[Kept | Dropped]:
    """Drops rows whose prompt or answer is shorter or longer than the limits; an answer may only call a tool."""
    size = (lambda text: len(text.split())) if limits.unit == "words" else len
    for row in rows:
        sizes = {"prompt": size(_prompt(row)), "answer": size(row.answer)}
        if row.messages[-1].get("tool_calls") and not row.answer:
            del sizes["answer"]
        for part, found in sizes.items():
            least, most = vars(limits)[f"min_{part}"], vars(limits)[f"max_{part}"]
            if least is not None and found < least:
                yield Dropped(row, f"{part} too short", f"{found:,} of at least {least:,} {limits.unit}")
                break
            if most is not None and found > most:
                yield Dropped(row, f"{part} too long", f"{found:,} of at most {most:,} {limits.unit}")
                break
        else:
            yield Kept(row)


def repetition(rows: Iterable[Row], limits: Repetition) -> Iterator[Kept | Dropped]:
    """Drops rows of which a text says the same again and again, in lines or in runs of five words.

    After the rules by which the data of Gopher were filtered (Rae et al. 2021, arXiv:2112.11446, table A1); of their
    many lengths of runs, five words alone. JSON answers repeat their keys and are not looked at.
    """
    for row in rows:
        found = next(filter(None, (_repeated(m["role"], str(m["content"]), limits) for m in row.messages)), None)
        yield Dropped(row, "repetitive", found) if found else Kept(row)


def _repeated(role: str, text: str, limits: Repetition) -> str | None:
    """What is repeated too much in a message."""
    if role in ("system", "tool") or _is_json(text):
        return None
    for name, limit, share in (("lines", limits.lines, lines_again), ("runs of words", limits.runs, runs_again)):
        if limit is not None and (found := share(text)) > limit:
            return f"{found:.0%} of a message of the {role} in repeated {name}"
    return None


def lines_again(text: str) -> float:
    """The share of a text's characters in lines that stand there for at least the second time."""
    lines = [line.strip() for line in text.splitlines() if _WORD.search(line)]
    again, seen = 0, set[str]()
    for line in lines:
        again += len(line) if line in seen else 0
        seen.add(line)
    return again / max(1, sum(map(len, lines)))


def runs_again(text: str) -> float:
    """The share of a text's letters and digits in runs of five words that stand there for at least the second time.

    None of a text of few words."""
    words = _WORD.findall(text.casefold())
    if len(words) < _FEW_WORDS:
        return 0.0
    again, seen = set[int](), set[tuple[str, ...]]()
    for place in range(len(words) - _RUN_WORDS + 1):
        run = tuple(words[place : place + _RUN_WORDS])
        if run in seen:
            again.update(range(place, place + _RUN_WORDS))
        seen.add(run)
    return sum(len(words[place]) for place in again) / max(1, sum(map(len, words)))


def languages(rows: Iterable[Row], wanted: list[str]) -> Iterator[Kept | Dropped]:
    """Drops rows whose prompt or answer is in another language, if there is hardly a doubt.

    A text of a few words or letters is never told by its language, nor is code or JSON. ConfigError for a language that
    is not known.
    """
    identified = _identifier()
    unknown = [name for name in wanted if name not in identified.labels]
    if unknown:
        raise ConfigError(
            f"data.clean.languages: there is no language `{unknown[0]}`",
            f"languages go by their code of ISO 639; known are {', '.join(sorted(identified.labels))}",
            "write its code, such as `en`",
        )
    for row in rows:
        for part, text in (("prompt", _prompt(row)), ("answer", row.answer)):
            other = _other_language(text, wanted, identified)
            if other:
                yield Dropped(row, "another language", f"the {part} is {other[0]} ({other[1]:.0%})")
                break
        else:
            yield Kept(row)


def _other_language(text: str, wanted: list[str], identified: Any) -> tuple[str, float] | None:
    if _is_json(text):
        return None
    prose = _CODE.sub(" ", text)
    unspaced = len(_UNSPACED.findall(prose))
    enough_words = unspaced >= _ENOUGH_WORDS or sum(map(str.isalpha, prose.split())) >= _ENOUGH_WORDS
    if not enough_words or sum(map(str.isalpha, prose)) + 2 * unspaced < _ENOUGH_LETTERS:
        return None
    name, probability = identified.classify(prose)
    return (name, probability) if name not in wanted and probability > _SURE else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid import langid  # reads its model: half a second, for those alone who ask

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def toxicity(rows: Iterable[Row], limit: Toxicity) -> Iterator[Kept | Dropped]:
    """Drops rows of which an answer, or any message, has a higher score than the limit: 0 is harmless, 1 is toxic."""
    scores = _own_scores(limit.score, limit.score.stat().st_mtime_ns) if limit.score else _scores()
    waiting = iter(rows)
    while together := list(islice(waiting, _AT_ONCE)):
        texts = [_judged(row, limit.where) for row in together]
        scored = iter(scores([text for of_row in texts for text in of_row]))
        for row, of_row in zip(together, texts):
            worst = max((next(scored) for _ in of_row), default=0.0)
            above = limit.above is not None and worst > limit.above
            yield Dropped(row, "toxic", f"score {worst:.2f}, above {limit.above:g}") if above else Kept(row)


def _judged(row: Row, where: str) -> list[str]:
    if where == "answers":
        return [str(m["content"]) for m in row.messages if m["role"] == "assistant" and m.get("learnt", True)]
    return [str(m["content"]) for m in row.messages if m["role"] in ("user", "assistant")]


def _scores() -> Callable[[list[str]], list[float]]:
    """Of offensive English words, by a linear model that a package brings along; a text's worst sentence counts."""
    if not find_spec("profanity_check"):
        raise ConfigError(
            "`data.clean.toxicity` needs the package alt-profanity-check, or a `score` of your own",
            "it is not installed in this environment",
            "pip install alt-profanity-check, or name a Python file with `score(text)` under `toxicity.score`",
        )
    from profanity_check import predict_prob  # scikit-learn comes with it: seconds

    def scores(texts: list[str]) -> list[float]:
        sentences = [_SENTENCE.findall(text) or [text] for text in texts]
        flat = [sentence for of_text in sentences for sentence in of_text]
        found = iter(predict_prob(flat).tolist() if flat else [])
        return [max(next(found) for _ in of_text) for of_text in sentences]

    return scores


@lru_cache(maxsize=4)
def _own_scores(path: Path, changed_ns: int) -> Callable[[list[str]], list[float]]:
    """The project's own `score`, read once a process: what it loads may be large."""
    function = plugin.function(path, "score", "text", "a number from 0, harmless, to 1, toxic")

    def score(text: str) -> float:
        try:
            found = function(text)
        except plugin.Fault as fault:
            raise _useless(path, str(fault)) from None
        if not isinstance(found, int | float) or not 0 <= found <= 1:
            raise _useless(path, f"it returned {found!r:.200}")
        return float(found)

    return lambda texts: [score(text) for text in texts]


def _useless(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"data.clean.toxicity.score: `score` of {path.name} cannot be used",
        why,
        f"mend {path}: `score(text)` returns a number from 0, harmless, to 1, toxic",
    )


def _prompt(row: Row) -> str:
    """What the user says in it."""
    return "\n".join(str(m["content"]) for m in row.prompt if m["role"] == "user")


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        parse_json(text)
    except ValueError:
        return False
    return True
