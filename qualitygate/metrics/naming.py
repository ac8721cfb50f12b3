"""Names out of files, as messages show them."""

LONGEST = 80


def shown(name: object, *, quoted: bool = True) -> str:
    """A name in one line of at most 80 characters, without anything that a terminal would obey.

    Line ends, escape sequences, and marks that turn the direction of writing come as Python writes them in a text.
    """
    # Before it is written out, too: a name may be as long as its file.
    text = name[: 2 * LONGEST] if isinstance(name, str) else name
    written = repr(text)
    if isinstance(name, str) and not quoted:
        written = written[1:-1]
    return written if len(written) <= LONGEST else written[: LONGEST - 3] + "..."
