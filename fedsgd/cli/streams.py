"""Output to streams of any encoding, and the report of a full disk."""

from __future__ import annotations

import codecs
import errno
import os
import re
import sys
import unicodedata
from typing import Any

import click

ERROR_HANDLER = "fedsgd-readable"
"""Name of the error handler of `codecs` that replaces characters, `make_readable`."""
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
ASCII_SUBSTITUTES = {
    "×": "x", "·": ".", "•": "*", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "≤": "<=", "≥": ">=",
    "≈": "~", "±": "+-", "∞": "inf", "∈": "in", "√": "sqrt", "‖": "||", "⟨": "<", "⟩": ">", "′": "'", "‘": "'", "’": "'",
    "“": '"', "”": '"', "°": "deg", "€": "EUR", "ß": "ss", "µ": "u",
}  # fmt: skip
"""ASCII text of similar look or meaning, by character."""


def make_readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that a stream cannot encode by ASCII, or by the original bytes if all of them are escaped bytes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in text):
        return text.encode("ascii", "surrogateescape"), error.end
    return "".join(map(_to_ascii, text)), error.end


def _to_ascii(character: str) -> str:
    """Return an ASCII text of similar look or meaning for a character, or "?"."""
    if character in ASCII_SUBSTITUTES:
        return ASCII_SUBSTITUTES[character]
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii())
    if plain:
        return f"^{plain}" if unicodedata.decomposition(character).startswith("<super>") else plain
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        return "-" if name.endswith("HORIZONTAL") else "|" if name.endswith("VERTICAL") else "+"
    if name.startswith("GREEK SMALL LETTER "):
        return name.rsplit(" ", 1)[-1].lower()
    return "*" if name.startswith("BRAILLE PATTERN") else "?"


codecs.register_error(ERROR_HANDLER, make_readable)


def make_streams_safe() -> None:
    """Let standard output and error replace characters outside their encoding, instead of raising an exception."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape", "backslashreplace"):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors=ERROR_HANDLER)


def echo(text: object = "", *, err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print a text with the options `err` and `nl` of `click.echo`, and the arguments of `click.style`."""
    # without `file`, `click.echo` writes UTF-8 to an ASCII stream
    click.echo(click.style(text, **style) if style else text, file=sys.stderr if err else sys.stdout, nl=nl)


def print_note(text: str) -> None:
    """Print a remark on the results on standard error."""
    echo(f"fedsgd: {text}", err=True)


def echo_json(text: str) -> None:
    """Print JSON. If the stream cannot encode a character, escape all non-ASCII characters, which only occur in strings."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", _escape_non_ascii, text)
    echo(text.rstrip("\n"))


def _escape_non_ascii(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def drop_output() -> None:
    """Flush standard output; after an error, redirect it to the null device, so that Python does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_disk_full(error: OSError) -> None:
    """Flush or discard standard output, then print an error with the name of the file that could not be written."""
    drop_output()
    echo(f"fedsgd: {error.filename or 'standard output'}: {os.strerror(error.errno or errno.ENOSPC)}", err=True)
