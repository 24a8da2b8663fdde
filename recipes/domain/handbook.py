"""Writes data/handbook.txt, the staff handbook of Fernhill, the invented shop of the support recipe, page by page.

    python recipes/domain/handbook.py

The facts stand in handbook.yaml, and what several pages say they all take from there, so that none contradicts another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SEPARATOR = "<|endoftext|>"  # on a line of its own it parts the documents of a text file


def about(p: dict[str, Any]) -> list[str]:
    return [
        f"The {p['name']}: {p['model']}",
        f"The {p['model']} is Fernhill's {p['name']}. It {p['does']}. It costs {p['price']} pounds and runs on "
        f"{p['power']}. Its place is {p['place']}. In the box are {p['box']}.",
        f"Whoever writes about the {p['model']} may call it the {p['name']}, or by its old name, the Fernhill "
        f"{p['name']}. In a ticket the product is always `{p['name']}`.",
        f"A message about a {p['name']} is urgent when {p['urgent']}. Such a ticket is answered first, whatever else "
        "is waiting. Other messages about it are of normal urgency, and questions before buying are of low urgency.",
    ]


def setup(p: dict[str, Any]) -> list[str]:
    return [
        f"How to set up the {p['name']}",
        f"Setting up a {p['model']} takes about ten minutes. The customer needs the app, the hub, and what is in the "
        f"box: {p['box']}.",
        lines(f"{number}. {step}" for number, step in enumerate(p["setup"], 1)),
        "If a step fails, begin again with the first. A customer who has tried twice is not asked to try a third time: "
        "offer a call, and choose the action `fix`. A customer who only asks how it is done gets these steps; that is "
        "a `question`, and the action is `inform`.",
    ]


def lights(p: dict[str, Any]) -> list[str]:
    first, *_, last = p["lights"]
    return [
        f"What the light of the {p['name']} says",
        f"The {p['model']} has one light. Ask for it before anything else, since it tells more than words do.",
        lines(f"- {light}: {meaning}" for light, meaning in p["lights"].items()),
        f"So a customer who sees {first} has a {p['name']} that does what it should. One who reports {last} can be "
        f"told at once that {p['lights'][last]}.",
    ]


def faults(p: dict[str, Any]) -> list[str]:
    return [
        f"When something is wrong with the {p['name']}",
        *(f"Customer: {said}\nWhat to do: {answer}" for said, answer in p["faults"].items()),
        f"A {p['name']} is under warranty for two years from the day of delivery. Within the first thirty days the "
        "customer may choose between a new one and the money: the action is then `refund` if money is asked for, else "
        f"`replace`. Faults of a {p['name']} are tickets of the category `technical`, unless it was broken on its way "
        "to the customer: then the category is `delivery`.",
    ]


def labels(field: str, meanings: dict[str, str]) -> list[str]:
    return [
        f"How tickets are labelled: {field}",
        "Every message becomes one ticket with four fields: category, urgency, product and action. The field "
        f"{field} has one of {len(meanings)} labels.",
        lines(f"- `{label}`: {meaning}." for label, meaning in meanings.items()),
        "Where two labels could fit, take the one that the customer asks for most clearly. A label that is not in this "
        "list does not exist.",
    ]


def catalogue(products: list[dict[str, Any]]) -> list[str]:
    names = ", ".join(p["name"] for p in products)
    return [
        "What Fernhill sells",
        "Fernhill sells devices for the home over the internet, and nothing in shops. Prices include tax and delivery "
        "within the country.",
        lines(f"- {p['model']}, the {p['name']}: {p['price']} pounds" for p in products),
        "The app is free. Fernhill Plus, the monthly plan, costs 4 pounds a month. In tickets the products are "
        f"{names}, app and subscription; where a message names and implies none of them, the product is `unknown`.",
    ]


def lines(items: Any) -> str:
    return "\n".join(items)


def handbook() -> str:
    facts = yaml.safe_load((HERE / "handbook.yaml").read_text(encoding="utf-8"))
    pages = [[title, *paragraphs] for title, paragraphs in facts["pages"].items()]
    pages.append(catalogue(facts["products"]))
    pages += [labels(field, meanings) for field, meanings in facts["labels"].items()]
    pages += [page(p) for p in facts["products"] for page in (about, setup, lights, faults)]
    return f"\n{SEPARATOR}\n".join("\n\n".join(page) for page in pages) + "\n"


if __name__ == "__main__":
    (HERE / "data/handbook.txt").write_text(handbook(), encoding="utf-8")
