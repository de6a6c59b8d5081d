"""The pages say what is there: links lead somewhere, named files exist, named flags are flags."""

import contextlib
import fnmatch
import io
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from splitrank.serving.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)+/?|[\w*-]+\.(py|h|cc|cu|inc|md|pml)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
FIELD = re.compile(r"^    ([a-z0-9_]+): \w+ = ", re.MULTILINE)
PROGRAMS = ("", ".py", ".cc", ".sh")
COMMAND = re.compile(r"splitrank ([a-z0-9]+)((?: [^\n`|#;]*)?)")

SOURCES = (".py", ".h", ".cc", ".cu", ".inc", ".md", ".pml")
ELSEWHERE = ("build", ".venv", "torch")  # made by scripts, or installed
# Flags of programs that others wrote, where a page names the whole command.
FOREIGN_FLAGS = {"--no-build-isolation", "--nproc-per-node", "--max-restarts", "--standalone"}


@cache
def tracked() -> frozenset[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return frozenset(listed.stdout.splitlines())


@cache
def paths() -> frozenset[str]:
    """Tracked files and their folders."""
    folders = {str(folder) for name in tracked() for folder in Path(name).parents}
    return tracked() | folders


@cache
def file_names() -> frozenset[str]:
    return frozenset(Path(name).name for name in tracked())


def pages() -> list[str]:
    return sorted(name for name in tracked() if name.endswith(".md"))


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings: lower case, without punctuation, hyphens for spaces."""
    titles = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: str, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(SPAN.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        found = target.exists() and target.resolve().is_relative_to(ROOT)
        if not found or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def names_of_paths(text: str) -> Iterator[str]:
    """The first word of each code span that looks like a path: with a slash, or a source file's name."""
    for span in SPAN.findall(FENCE.sub("", text)):
        word = span.split()[0].split("::")[0] if span.split() else ""
        if PATH.fullmatch(word):
            yield word.rstrip("/")


def places(page: str, name: str) -> list[str]:
    """``name`` as written from the repository, and from each folder on the way to the page."""
    return [name, *(f"{folder}/{name}" for folder in map(str, Path(page).parents) if folder != ".")]


def exists(page: str, name: str) -> bool:
    """Pages leave out ``.py``, and say ``a/b`` of a module ``a/b.cc`` and its header."""
    if "/" not in name:
        return name in file_names() or bool("*" in name and fnmatch.filter(file_names(), name))
    wanted = [place + suffix for place in places(page, name) for suffix in ("", ".py", ".cc", ".h")]
    return any(path in paths() or ("*" in path and fnmatch.filter(paths(), path)) for path in wanted)


def looks_tracked(page: str, name: str) -> bool:
    """A source file, or a path whose first folder is there; hub ids, routes and the like are not."""
    first = name.split("/")[0]
    is_source = Path(name).suffix in SOURCES and first not in ELSEWHERE
    return is_source or any(place in paths() for place in places(page, first))


def missing_files(page: str, text: str) -> list[str]:
    return [name for name in names_of_paths(text) if looks_tracked(page, name) and not exists(page, name)]


def code_of(text: str) -> Iterator[str]:
    """Code spans, and lines of code blocks with those that continue them joined."""
    for block in FENCE.findall(text):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()[1:-1]
    yield from (" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text)))


@cache
def flags_of(command: str) -> frozenset[str]:
    """Those that ``splitrank COMMAND --help`` lists."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([command, "--help"]) == 0
    listed = [line.split("  ")[1] for line in out.getvalue().splitlines() if re.match("  -", line)]
    return frozenset(flag for line in listed for flag in FLAG.findall(line))


@cache
def other_flags() -> frozenset[str]:
    """Flags of any command, and those that the programs of ``scripts`` name or make of the fields of a dataclass."""
    programs = [
        name for name in tracked() if name.startswith(("scripts/", "tests/csrc/")) and Path(name).suffix in PROGRAMS
    ]
    source = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in (*programs, "tests/conftest.py"))
    fields = {"--" + name.replace("_", "-") for name in FIELD.findall(source)}
    return frozenset(FLAG.findall(source)).union(fields, FOREIGN_FLAGS, *map(flags_of, COMMANDS))


def unknown_flags(text: str) -> list[str]:
    unknown = []
    for code in code_of(text):
        for command, arguments in COMMAND.findall(code):
            if command in COMMANDS:
                missing = set(FLAG.findall(arguments)) - flags_of(command)
                unknown += [f"splitrank {command} {flag}" for flag in missing]
        unknown += set(FLAG.findall(code)) - other_flags()
    return unknown


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(page, (ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", sorted(set(pages()) - {"CHANGELOG.md"}))  # it also tells of what is gone
def test_named_files_exist(page: str) -> None:
    assert missing_files(page, (ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", sorted(set(pages()) - {"CHANGELOG.md"}))
def test_named_flags_are_flags(page: str) -> None:
    assert unknown_flags((ROOT / page).read_text(encoding="utf-8")) == []


def test_every_page_of_docs_is_linked_from_the_landing_page() -> None:
    links = {link.partition("#")[0] for link in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {page for page in pages() if page.startswith("docs/")} - links == set()


def test_figures_of_the_landing_page_are_those_of_docs() -> None:
    """Rows of its tables of speed stand in ``docs/`` as well, so that neither is brought up to date alone."""
    speed = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Speed\n")[2].partition("\n## ")[0]
    rows = [line for line in speed.splitlines() if re.match(r"\|.*\d", line)]
    known = {line for page in pages() if page.startswith("docs/") for line in (ROOT / page).read_text().splitlines()}
    assert len(rows) > 10
    assert [row for row in rows if row not in known] == []


def test_the_page_of_scripts_names_each_of_them() -> None:
    page = (ROOT / "scripts/README.md").read_text(encoding="utf-8")
    scripts = {Path(name).name for name in tracked() if Path(name).parent == Path("scripts")} - {"README.md"}
    named = {name for span in SPAN.findall(page) for name in scripts if fnmatch.fnmatchcase(name, span)}
    assert scripts - named == set()


def test_what_is_wrong_is_seen() -> None:
    links = "[a](docs/gone.md) [b](#gone) [c](docs/gpu.md#gone) [d](docs/gpu.md) [e](#what-works) [f](../other)"
    assert broken_links("README.md", links) == ["docs/gone.md", "#gone", "docs/gpu.md#gone", "../other"]
    text = (
        "`tests/gpu/gone`, `gone.py`, `gone/x.py`, `docs/gone*`, `csrc/README.md`, `Qwen/Qwen3.5`, `scripts/test -k x`"
    )
    assert missing_files("README.md", text) == ["tests/gpu/gone", "gone.py", "gone/x.py", "docs/gone*"]
    assert unknown_flags("`splitrank serve --pp 2 --input x`") == ["splitrank serve --input"]
    assert unknown_flags("```\nsplitrank plan --pq 1\n```") == ["splitrank plan --pq", "--pq"]
