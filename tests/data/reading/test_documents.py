"""Files as documents: the forms that the module's docstring names, and nothing lost in any of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunesmith.core.errors import DataError
from tunesmith.core.records import Quarantined
from tunesmith.data.reading import documents
from tunesmith.data.reading.documents import Document


def found(path: Path, content: str | bytes) -> list[tuple[int, str]]:
    """Line and text of each document of a file with this content; the reason in place of the text for broken ones."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(item.line, item.text if isinstance(item, Document) else item.reason) for item in documents.read(path)]


def test_a_text_file_with_paragraphs_is_one_document(tmp_path: Path) -> None:
    text = "# Title\n\nFirst line,\nsecond line.\n\n\nAfter two blank lines.\n"
    assert found(tmp_path / "a.txt", text) == [(1, text.strip())]
    assert found(tmp_path / "windows.txt", text.replace("\n", "\r\n")) == [(1, text.strip())]


def test_a_text_file_without_blank_lines_has_a_document_a_line(tmp_path: Path) -> None:
    assert found(tmp_path / "a.txt", "one article\nanother article\n") == [(1, "one article"), (2, "another article")]


def test_a_markdown_file_is_one_document_with_or_without_blank_lines(tmp_path: Path) -> None:
    assert found(tmp_path / "a.md", "# Title\nA sentence, with commas.\n") == [(1, "# Title\nA sentence, with commas.")]


def test_separators_part_documents_and_are_no_text(tmp_path: Path) -> None:
    text = "A story.\nIts end.\n<|endoftext|>\n\nAnother.\n\nOf two parts.\n<|endoftext|>\n"
    assert found(tmp_path / "a.txt", text) == [(1, "A story.\nIts end."), (5, "Another.\n\nOf two parts.")]


def test_records_give_their_text_and_broken_ones_are_told_apart(tmp_path: Path) -> None:
    lines = [{"text": " one "}, {"body": "two"}, {"text": 3}, {"text": ""}]
    content = "\n".join(map(json.dumps, lines)) + '\n{"text": "cut off\n'
    assert found(tmp_path / "a.jsonl", content) == [
        (1, "one"), (2, "no column `text`"), (3, "`text` is no text"), (4, ""), (5, "not valid JSON"),
    ]  # fmt: skip
    assert found(tmp_path / "a.json", json.dumps(lines[:1])) == [(1, "one")]


def test_a_line_in_another_encoding_is_quarantined_and_the_rest_is_read(tmp_path: Path) -> None:
    content = "first\n\ncaf\xe9\n\nlast\n".encode("latin-1")
    assert found(tmp_path / "a.txt", content) == [(3, "not valid UTF-8"), (1, "first\n\n\n\nlast")]


def test_a_very_long_document_is_divided_at_a_blank_line_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {i} " + "x" * 1000 for i in range(2500))
    parts = found(tmp_path / "a.txt", text)
    assert len(parts) == 3
    assert "\n\n".join(part for _, part in parts) == text
    assert all(part.startswith("paragraph") for _, part in parts)


def test_what_cannot_be_read_names_the_key_of_the_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compressed") as error:
        found(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "one"}\n'))
    assert error.value.next == "unpack it (gunzip) and name the result in pretrain.texts"


def test_real_files(real_data: Path) -> None:
    """Thirty articles, one a line; three hundred web pages, one a record."""
    wiki = list(documents.read(real_data / "formats/wiki_demo.txt"))
    assert [item.line for item in wiki] == list(range(1, 31))
    assert all(isinstance(item, Document) and len(item.text) > 200 for item in wiki)
    c4 = list(documents.read(real_data / "formats/c4_demo.jsonl"))
    assert len(c4) == 300
    assert not any(isinstance(item, Quarantined) for item in c4)
