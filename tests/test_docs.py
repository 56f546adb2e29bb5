"""The README and every page of docs/ run: their python blocks from top to bottom, and what these print is what stands below them."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: \S.*-->")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<prints>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
MINE = '{"text": "Write a fake apology to a neighbour."}\n{"text": "Write a fake apology to your neighbour."}\n'


def blocks(page: Path) -> list[tuple[int, str, str | None]]:
    """Line number, code and expected output of each block that is to run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        above = text[: match.start()].splitlines()
        if not (above and NOT_RUN.fullmatch(above[-1])):
            found.append((len(above) + 1, match["code"], match["prints"]))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_pages_run_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where docs/goals.md finds and writes files
    (tmp_path / "mine.jsonl").write_text(MINE, encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "docs"}
    for line, code, prints in blocks(page):
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile("\n" * line + code, page, "exec"), namespace)  # our own page; line numbers are the page's
        if prints is not None:
            assert out.getvalue() == prints, f"{page.name}, line {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (heading and heading not in headings(file)):
            broken.append(f"{target}#{heading}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
