"""Known faults, planted into rows that have none: how many of them each cleaner finds, and what else it takes for one.

Every row that is planted has a twin that looks alike and is well, so that a cleaner that always cries is found out.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random

from cleaning import values
from tunesmith.core.clean_section import Repetition, Toxicity
from tunesmith.core.records import Dropped, Row
from tunesmith.data.cleaning import filters, pii, repair

ROWS = 200  # that each fault is planted into

GOLD = {
    "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
}  # fmt: skip
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u2066\U000e0041"
CONTROLS = "\x00\x07\x08\x1b\x7f\x81\u2028"
PHRASES = [
    "Grüße aus München", "déjà réglé à l’agence", "za późno, proszę", "Señor Núñez pagó 20 €", "“very” urgent – now",
    "a naïve café", "Århus på mandag", "Привет из Москвы", "Ευχαριστώ πολύ", "今日はありがとう", "teşekkür ederim",
    "it’s mine…",
    "👍 great", "Übermäßig groß", "čeština je těžká", "ça va très bien",
]  # fmt: skip
WELL = [
    "👨\u200d👩\u200d👧 my family",
    "می\u200cخواهم",
    "क\u094d\u200dष",
    "שלום \u200fabc",
    "❤\ufe0f you",
    "ภาษา\u200bไทย",
]
FOREIGN = [
    "Ich warte seit zwei Wochen auf meine neue Karte", "Leider wurde Ihre Überweisung gestern abgelehnt",
    "J’attends ma nouvelle carte depuis deux semaines", "Votre virement a été refusé hier par la banque",
    "Llevo dos semanas esperando mi tarjeta nueva", "Su transferencia fue rechazada ayer por el banco",
    "Aspetto la mia nuova carta da due settimane", "Estou à espera do meu novo cartão há duas semanas",
    "Ik wacht al twee weken op mijn nieuwe kaart", "Czekam na nową kartę już od dwóch tygodni",
    "Я жду свою новую карту уже две недели", "Jag har väntat på mitt nya kort i två veckor",
    "İki haftadır yeni kartımı bekliyorum ama gelmedi", "我已经等了两个星期的新银行卡了",
    "新しいカードを二週間も待っています",
    "Περιμένω τη νέα μου κάρτα εδώ και δύο εβδομάδες", "أنتظر بطاقتي الجديدة منذ أسبوعين",
    "새 카드를 두 주 동안 기다리고 있습니다",
    "Čekám na svou novou kartu už dva týdny", "Odottelen uutta korttiani jo toista viikkoa",
]  # fmt: skip
RUDE = [
    "You are a fucking idiot.", "Shut up, you stupid bitch.", "Go fuck yourself.",
    "What a worthless piece of shit you are.",
    "Only a moron would ask this.", "You are an ugly whore.", "Eat shit and die.", "You dumb asshole.",
    "Nobody likes you, loser, get lost.", "I hope that you die in pain.", "People like you are vermin.",
]  # fmt: skip


@dataclass(frozen=True)
class Score:
    """What a cleaner made of so many planted faults: found, and what it found that is none."""

    planted: int
    found: int
    false: int
    exact: int  # found to the character, or mended to what it was

    def to_json(self) -> dict[str, float]:
        precision = self.found / (self.found + self.false) if self.found else 0.0
        return {**vars(self), "recall": round(self.found / self.planted, 4), "precision": round(precision, 4)}


def rows(data: Path) -> list[Row]:
    """Messages of bank customers with their intents, and instructions with their answers."""
    with open(data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        pairs = [(r["text"], r["category"]) for r in csv.DictReader(file)][::5]
    told = json.loads((data / "instructions/instruction-data.json").read_text(encoding="utf-8"))
    pairs += [(f"{r['instruction']} {r['input']}".strip(), r["output"]) for r in told]
    return [row(*pair) for pair in pairs if all(pair)]


def row(prompt: str, answer: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row(messages, "planted", 1, "messages")


def gold(data: Path) -> dict[str, Score]:
    """Personal data in the texts of presidio-research; what overlaps a span of its kind is found."""
    scores: dict[str, Counter[str]] = {kind: Counter() for kind in GOLD.values()}
    for item in json.loads((data / "pii/synthetic-pii-750.json").read_text(encoding="utf-8")):
        spans = [
            (GOLD[s["entity_type"]], s["start_position"], s["end_position"])
            for s in item["spans"]
            if s["entity_type"] in GOLD
        ]
        _enter(scores, spans, pii.find(item["full_text"]))
    return {kind: _score(counts) for kind, counts in scores.items()}


def personal(clean: list[Row], random: Random) -> dict[str, Score]:
    """Each kind in users' messages, before or after what they say."""
    scores: dict[str, Score] = {}
    for name, (kind, draw, contexts) in values.KINDS.items():
        counts: dict[str, Counter[str]] = {kind: Counter()}
        for of_row in random.sample(clean, ROWS):
            value, context = draw(random), random.choice(contexts)
            text, start = _joined(of_row.messages[0]["content"], context.format(value), random)
            start += context.format("\0").index("\0")
            _enter(counts, [(kind, start, start + len(value))], pii.find(text))
        scores[name] = _score(counts[kind])
    return scores


def alike(clean: list[Row], random: Random) -> list[str]:
    """What is taken for personal data among the values that only look so, ROWS of each."""
    texts = [
        _joined(of_row.messages[0]["content"], values.alike(random, template), random)[0]
        for of_row in random.sample(clean, ROWS)
        for template in values.ALIKE
    ]
    return [text[start:end] for text in texts for _, start, end in pii.find(text)]


def _joined(text: str, added: str, random: Random) -> tuple[str, int]:
    """One before the other, and where what was added begins."""
    return (f"{text} {added}", len(text) + 1) if random.random() < 0.5 else (f"{added} {text}", 0)


def _enter(scores: dict[str, Counter[str]], spans: list[pii.Find], found: list[pii.Find]) -> None:
    for kind, start, end in spans:
        scores[kind]["planted"] += 1
        scores[kind]["exact"] += (kind, start, end) in found
        scores[kind]["found"] += any(k == kind and s < end and start < e for k, s, e in found)
    for kind, start, end in found:
        right = any(k == kind and s < end and start < e for k, s, e in spans)
        scores.setdefault(kind, Counter())["false"] += not right
        if kind not in {k for k, _, _ in spans} and spans:
            scores[spans[0][0]]["false"] += 1  # another kind in the planted one's place


def _score(counts: Counter[str]) -> Score:
    return Score(counts["planted"], counts["found"], counts["false"], counts["exact"])


def repairs(clean: list[Row], random: Random) -> dict[str, Score]:
    """Texts that were broken in a known way; mended to what they were is exact. Twins hold the same, unbroken."""

    def misread(text: str) -> str:
        by = random.choice(["sloppy-windows-1252", "latin-1"])
        return text.encode().decode(by)

    def with_one_of(characters: str) -> Callable[[str], str]:
        def changed(text: str) -> str:
            words = text.split(" ")
            at = random.choice([i for i, word in enumerate(words) if len(word) > 2 and word.isascii()])
            words[at] = words[at][:2] + random.choice(characters) + words[at][2:]
            return " ".join(words)

        return changed

    import ftfy  # noqa: F401 (brings the codec that browsers read wrongly with)

    broken: dict[str, Callable[[str], str]] = {
        "mojibake": misread,
        "invisible characters": with_one_of(INVISIBLE),
        "control characters": with_one_of(CONTROLS),
        "Unicode form": lambda text: unicodedata.normalize("NFD", text),
        "byte order mark": lambda text: f"\ufeff{text}",
    }
    scores = {}
    for kind, spoil in broken.items():
        counts = Counter[str]()
        for of_row in random.sample(clean, ROWS):
            text = of_row.messages[0]["content"]
            whole, _ = _joined(text, random.choice(PHRASES), random)
            twin, _ = _joined(text, random.choice(PHRASES + WELL), random)
            spoilt = spoil(whole)
            if spoilt == whole:
                continue
            counts["planted"] += 1
            notes: dict[str, None] = {}
            counts["exact"] += _meant(repair.repaired(spoilt, notes)) == _meant(whole)
            counts["found"] += kind in notes
            counts["false"] += repair.repaired(twin, {}) != twin
        scores[kind] = _score(counts)
    return scores


def _meant(text: str) -> str:
    """Of a separator of lines, a line's end is left."""
    return text.replace("\n", "")


def dropped(clean: list[Row], random: Random) -> dict[str, Score]:
    """Rows that a filter should drop, among all those that it should keep."""

    def looped(text: str) -> str:
        return random.choice(["\n".join([text] * 3), f"{text} " * 3, text + " and so on and on we go" * 3])

    def amid(text: str) -> str:
        return f"{text} {random.choice(RUDE)}" if random.random() < 0.5 else f"{random.choice(RUDE)} {text}"

    english = [r for r in clean if "ranslat" not in r.messages[0]["content"]]
    long = [r for r in clean if len(r.answer.split()) >= 5]
    scores = {
        "repetition": _filtered(
            clean, long, looped, lambda rows: filters.repetition(rows, Repetition(lines=0.2, runs=0.15)), random
        ),
        "another language": _filtered(
            english, english, lambda text: random.choice(FOREIGN), lambda rows: filters.languages(rows, ["en"]), random
        ),
    }
    if find_spec("profanity_check"):
        limit = Toxicity(above=0.9)
        scores["toxicity"] = _filtered(clean, long, amid, lambda rows: filters.toxicity(rows, limit), random)
    return scores


def _filtered(
    clean: list[Row],
    eligible: list[Row],
    spoil: Callable[[str], str],
    stage: Callable[[Iterable[Row]], Iterable[object]],
    random: Random,
) -> Score:
    chosen = random.sample(eligible, ROWS)
    planted = [row(r.messages[0]["content"], spoil(r.answer)) for r in chosen]
    found = sum(isinstance(result, Dropped) for result in stage(planted))
    false = sum(isinstance(result, Dropped) for result in stage(replace(r) for r in clean))
    return Score(ROWS, found, false, found)
