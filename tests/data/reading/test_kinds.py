"""Web pages, PDF, DOCX and subtitles as documents: made as files in the test, read as text, broken ones quarantined."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import docx
import pypdfium2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from tunesmith.core.errors import ConfigError
from tunesmith.core.records import Quarantined
from tunesmith.data.reading import documents, pdf, subtitles
from tunesmith.data.reading.documents import Document
from tunesmith.data.reading.passages import passages
from tunesmith.data.reading.values import Unusable


def only(path: Path) -> Document:
    (found,) = documents.read(path)
    assert isinstance(found, Document), found
    return found


def refused(path: Path) -> Quarantined:
    (found,) = documents.read(path)
    assert isinstance(found, Quarantined), found
    assert found.fix
    assert found.source == path.name
    return found


def page(folder: Path, body: str, name: str = "page.html") -> Document:
    path = folder / name
    path.write_text(f"<!doctype html><html><head><title>My\n page</title><style>p{{}}</style></head>{body}</html>")
    return only(path)


def test_a_page_becomes_markdown_without_what_surrounds_its_text(tmp_path: Path) -> None:
    body = """<body><header>Logo</header><nav><a href=x>Home</a></nav><div class=x>
      <h1>Re<b>turns</b></h1><p>Send it\n back<br>within <em>30</em> days &amp; <code>pay()</code> nothing.</p>
      <ul><li>One</li><li>Two<ol><li>inner</li></ol></li></ul>
      <script>alert("no")</script><p hidden>secret</p><div role="navigation">more</div>
      <pre>if x:\n    y</pre><table><thead><tr><th>a|b</th><th>c</th></tr></thead><tr><td>1</td></tr></table>
      <blockquote><p>So</p><p>it is.</p></blockquote>loose <span>text<div>block</div></span></div>
      <footer>(c)</footer></body>"""
    found = page(tmp_path, body)
    assert found.text == textwrap.dedent("""\
        # Returns

        Send it back
        within 30 days & `pay()` nothing.

        - One
        - Two
          1. inner

        ```
        if x:
            y
        ```

        | a\\|b | c |
        | --- | --- |
        | 1 |  |

        > So
        >
        > it is.

        loose

        text

        block""")
    assert (found.title, found.markdown, found.unit) == ("My page", True, "document")
    assert {passage.titles for passage in passages(found)} == {("My page", "Returns")}


def test_the_main_part_of_a_page_is_enough(tmp_path: Path) -> None:
    assert (
        page(tmp_path, "<body><div>Ads</div><main><header>Top</header><p>Text</p></main></body>").text == "Top\n\nText"
    )
    assert page(tmp_path, "<body><div>Text</div><main></main></body>").text == "Text"
    assert page(tmp_path, "<body><form id=aspnetForm><p>Text</p><input value=x></form></body>").text == "Text"


def test_a_page_names_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.htm"
    path.write_bytes('<meta charset="windows-1251"><p>Привет</p>'.encode("cp1251"))
    assert only(path).text == "Привет"
    for content in (b"<p>caf\xe9</p>", b"<meta charset=nonsense><p>caf\xe9</p>", b"<meta charset=idna><p>caf\xe9</p>"):
        path.write_bytes(content)
        assert refused(path).reason == "not valid UTF-8"


def test_a_page_without_text_or_without_end_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<body><script>render()</script></body>")
    assert refused(path).reason == "no text in the page"
    path.write_text("<body>" + "<div><p>" * 5000 + "x")
    assert refused(path).reason == "nested too deeply"


@given(st.text(alphabet="<>/abdivplitrx \n&;=\"'", max_size=200))
def test_no_page_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("pages") / "a.html"
    path.write_text(text)
    assert len(list(documents.read(path))) == 1


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80)


def write_pdf(path: Path, pages: list[list[str]], **options: object) -> Path:
    canvas = Canvas(str(path), invariant=1, **options)  # type: ignore[arg-type]
    for lines in pages:
        text = canvas.beginText(50, 780)
        for line in lines:
            text.textLine(line)
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return path


LONG = " ".join(f"Sentence {i} tells of the long-term care of boilers and of pipes." for i in range(9))


def test_a_pdf_becomes_paragraphs_that_know_their_pages(tmp_path: Path) -> None:
    pages = [
        [
            "Boiler manual 2024",
            "Chapter of care",
            *wrapped(LONG),
            f"Another {'ab' * n} of it.",
            f"Page {n} of 3",
        ]
        for n in (1, 2, 3)
    ]
    path = write_pdf(tmp_path / "manual.pdf", pages)
    found = only(path)
    assert found.unit == "page"
    assert found.furniture == 6 + 3
    assert "Boiler manual" not in found.text
    assert "Page" not in found.text
    paragraphs = found.text.split("\n\n")
    assert [text for text in paragraphs if text.startswith("Sentence 0")] == [LONG] * 3
    assert [found.place(i) for i in range(0, 2 * len(paragraphs), 2)] == [1] * 2 + [2] * 2 + [3] * 2
    pieces = list(passages(found, 120))
    assert {piece.where for piece in pieces} == {f"manual.pdf, page {n}" for n in (1, 2, 3)}


def test_furniture_needs_three_pages_and_text_in_the_middle_stays() -> None:
    two = [["Head", "a"], ["Head", "b"]]
    assert pdf.without_furniture(two) == (two, 0)
    pages = [["Head", f"a{n}", "b", "The same in the middle", "c", f"d{chr(97 + n)}", str(n)] for n in range(4)]
    kept, count = pdf.without_furniture(pages)
    assert count == 4 * 3  # head, the line under it that differs in its number only, page number
    assert all(page[1] == "The same in the middle" for page in kept)
    assert pdf.without_furniture([["x"], ["x"], ["x"], ["y"]]) == ([[], [], [], ["y"]], 3)


def test_divided_words_are_joined_and_hyphenated_ones_keep_their_hyphen() -> None:
    full = "This line of text is as long as a line of text on such a page is, or more, infor-"
    lines = [full, "mation about what is well-known, and so on, up to the end of this line, well-", "known to us."]
    assert pdf.paragraphs([lines]) == [
        (1, full[:-1] + "mation about what is well-known, and so on, up to the end of this line, well-known to us.")
    ]
    assert pdf.paragraphs([[full[:-1] + "\ufffe", "mation."]]) == [(1, full[:-1] + "mation.")]
    assert pdf.paragraphs([["see the follow-", "Up"]])[0][1] == "see the follow- Up"


def test_a_sentence_goes_on_over_a_page_break() -> None:
    line = "a line that is long enough to be called full, which does not end the sentence"
    assert pdf.paragraphs([[line], ["but goes on."]]) == [(1, f"{line} but goes on.")]
    assert len(pdf.paragraphs([[line], ["New chapter."]])) == 2
    assert len(pdf.paragraphs([[line + "."], ["but no."]])) == 2


def picture() -> ImageReader:
    bitmap = pypdfium2.PdfBitmap.new_native(8, 8, pypdfium2.raw.FPDFBitmap_BGR)
    file = io.BytesIO()
    bitmap.to_pil().save(file, "PNG")
    return ImageReader(file)


def test_scanned_pages_are_quarantined_with_the_fix(tmp_path: Path) -> None:
    for texts in ([], ["Text on a page of its own."]):
        canvas = Canvas(str(tmp_path / "scan.pdf"))
        for text in texts:
            canvas.drawString(50, 700, text)
            canvas.showPage()
        canvas.drawImage(picture(), 0, 0, 500, 700)
        canvas.showPage()
        canvas.save()
        *found, fault = documents.read(tmp_path / "scan.pdf")
        assert isinstance(fault, Quarantined)
        assert fault.reason == "scanned pages without text"
        assert "ocrmypdf" in fault.fix
        assert [one.text for one in found if isinstance(one, Document)] == texts
        assert not texts or "page 2" in fault.fix


def test_encrypted_broken_and_empty_pdfs_are_quarantined_with_the_fix(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [["Secret"]], encrypt=StandardEncryption("pass", "owner"))
    assert (refused(path).reason, "qpdf --decrypt" in refused(path).fix) == ("encrypted", True)
    whole = write_pdf(tmp_path / "b.pdf", [["Text"]]).read_bytes()
    for content in (b"%PDF-1.4 nonsense", b"no pdf at all", whole[:200]):
        path.write_bytes(content)
        assert refused(path).reason == "not a readable PDF file"
    assert refused(write_pdf(tmp_path / "c.pdf", [[]])).reason == "no text in it"


def test_a_title_is_taken_unless_it_is_a_file_name(tmp_path: Path) -> None:
    for title, told in (("Boiler care", "Boiler care"), ("Microsoft Word - x.docx", ""), ("final.indd", "")):
        canvas = Canvas(str(tmp_path / "a.pdf"))
        canvas.setTitle(title)
        canvas.drawString(50, 700, "Text")
        canvas.save()
        assert only(tmp_path / "a.pdf").title == told


def test_a_docx_becomes_markdown(tmp_path: Path) -> None:
    made = docx.Document()
    made.core_properties.title = "Handbook"
    made.add_heading("Care", 1)
    made.add_paragraph("Clean it.")
    made.add_paragraph("One", style="List Bullet")
    made.add_paragraph("Two", style="List Number")
    made.add_heading("Parts", 2)
    table = made.add_table(2, 2)
    for cell, text in zip((cell for row in table.rows for cell in row.cells), ("Part", "Price", "Valve", "9")):
        cell.text = text
    made.add_paragraph("")
    made.add_paragraph("The end.")
    made.sections[0].header.paragraphs[0].text = "Page header"
    made.save(str(tmp_path / "a.docx"))
    found = only(tmp_path / "a.docx")
    assert found.text == (
        "# Care\n\nClean it.\n\n- One\n- Two\n\n## Parts\n\n| Part | Price |\n| --- | --- |\n| Valve | 9 |\n\nThe end."
    )
    assert next(passages(found)).titles == ("Handbook", "Care")


def test_broken_docx_files_are_quarantined_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    docx.Document().save(str(path))
    assert refused(path).reason == "no text in it"
    whole = path.read_bytes()
    for content in (b"no zip", whole[:2000], b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        assert refused(path).reason == "not a readable DOCX file"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    assert refused(path).reason == "encrypted, or of the old .doc format"


SRT = """1
00:00:01,000 --> 00:00:03,500
<i>Hello there.</i>
{\\an8}How are &amp; you?

2
00:00:03,600 --> 00:00:05,000
No.

3
00:00:05,800 --> 00:00:06,000
No.

4
00:00:20,000 --> 00:00:22,000
After a pause.
"""


def test_subtitles_become_running_text_that_knows_its_cues(tmp_path: Path) -> None:
    for name, text in (
        ("a.srt", SRT),
        ("b.srt", SRT.replace("\n", "\r\n")),
        ("c.vtt", "WEBVTT\n\n" + SRT.replace(",", ".")),
    ):
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
        found = only(tmp_path / name)
        assert found.text == "Hello there. How are & you? No. No.\n\nAfter a pause."
        first, second = (2, 15) if name != "c.vtt" else (4, 17)
        assert [p.line for p in passages(found, 9)] == [first, second]


def test_lines_that_roll_from_cue_to_cue_are_read_once() -> None:
    text = """WEBVTT
Kind: captions

NOTE made by a machine

00:00:00.000 --> 00:00:02.000 align:start position:0%

so<00:00:00.400><c> today</c><00:00:00.800><c> we</c>

00:00:02.000 --> 00:00:02.010 align:start position:0%
so today we


00:00:02.010 --> 00:00:04.000 align:start position:0%
so today we
look<00:00:02.500><c> at</c> valves
00:00:04.000 --> 00:00:04.010
look at valves

00:05.000 --> 00:06.000
look at valves again
"""
    assert subtitles.read(text)[0] == "so today we look at valves look at valves again"
    grown = "".join(
        f"{i}\n00:00:0{i},000 --> 00:00:0{i + 1},000\n{words}\n\n"
        for i, words in enumerate(["one", "one two", "one two three"], 1)
    )
    assert subtitles.read(grown)[0] == "one two three"


@pytest.mark.parametrize(("shown", "text"), [
    ("if x < 5 and y > 3 then stop", "if x < 5 and y > 3 then stop"), ("we <3 it, 1<2>0", "we <3 it, 1<2>0"),
    ("<v Ann Lee>so <00:00:01.400><c.loud>we</c> go", "so we go"), ("<i>so</i> <00:01.400>we </>go", "so we go"),
    ("{\\an8}{so} <font color=#fff>we</font>", "{so} we"),
])  # fmt: skip
def test_only_tags_are_taken_out_of_a_cue(shown: str, text: str) -> None:
    assert subtitles.read(f"00:00:01.000 --> 00:00:02.000\n{shown}\n")[0] == text


def test_long_subtitles_have_lines_of_their_own_places() -> None:
    text = "".join(
        f"{i}\n00:{i // 60:02}:{i % 60:02},000 --> 00:{i // 60:02}:{i % 60:02},900\nThis is what cue {i} says.\n\n"
        for i in range(100)
    )
    written, marks = subtitles.read(text)
    lines = written.split("\n")
    assert len(lines) == len(marks) > 8
    for (number, line), said in zip(marks, lines):
        assert number == lines.index(said)
        assert text.split("\n")[line] == " ".join(said.split()[:6])


def test_subtitles_without_cues_or_in_another_encoding_are_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_text("1\n\nnothing\n")
    assert refused(path).reason == "no cues with text in it"
    path.write_text("1\n00:00:01,000 --> 00:00:02,000\n\n2\n00:00:03,000 --> 00:00:04,000\n<i> </i>\n")
    assert refused(path).reason == "no cues with text in it"
    path.write_bytes(SRT.replace("Hello", "Café").encode("latin-1"))
    assert refused(path).reason == "not valid UTF-8"
    with pytest.raises(Unusable):
        subtitles.read("")


@pytest.mark.parametrize(("name", "package"), [("a.html", "selectolax"), ("a.pdf", "pypdfium2"), ("a.docx", "docx")])
def test_a_missing_package_is_told_with_the_command_that_brings_it(name: str, package: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"content")
    code = f"""
import sys
sys.modules[{package!r}] = None
from pathlib import Path
from tunesmith.core.errors import ConfigError
from tunesmith.data.reading import documents
try:
    list(documents.read(Path({str(tmp_path / name)!r})))
except ConfigError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'tunesmith[documents]'" in told
    assert name in told
    assert ConfigError
