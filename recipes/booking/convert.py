"""restaurant8k's records as prompt and answer: the message with the slots asked for, a JSON object of spans."""

import json

SLOTS = ("people", "date", "time", "first_name", "last_name")


def convert(record: dict) -> dict:
    text = record["userInput"]["text"]
    asked = record.get("context", {}).get("requestedSlots", [])
    spans = {label["slot"]: label["valueSpan"] for label in record.get("labels", [])}
    values = {slot: text[spans[slot].get("startIndex", 0) : spans[slot]["endIndex"]] for slot in SLOTS if slot in spans}
    prompt = f"{text}\n(asked for: {', '.join(asked)})" if asked else text
    return {"prompt": prompt, "completion": json.dumps(values, ensure_ascii=False)}
