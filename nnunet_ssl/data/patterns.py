"""Regular expressions that somebody has written into a file: their time and memory are bounded."""

import time
from collections.abc import Iterable

import regex

LIMIT_S = 5.0  # for all texts of one search together
LONGEST = 1000  # characters of a pattern
MOST_REPEATS = 10_000  # the product of all counts such as {3,5}: each is written out when a pattern is compiled
COUNT = regex.compile(r"\{(\d*),?(\d*)\}")


def compile_pattern(pattern: str) -> regex.Pattern:
    """Return a compiled pattern.

    Raises:
        ValueError: it is no regular expression, or would take too much memory.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"{pattern!r:.60} is no regular expression: it is no text")
    if len(pattern) > LONGEST:
        raise ValueError(f"{pattern[:60]!r}... is no regular expression to be used: it has more than {LONGEST} letters")
    repeats = 1
    for counts in COUNT.findall(pattern):
        repeats *= max(1, *(int(count) for count in counts if count))
    if repeats > MOST_REPEATS:
        raise ValueError(f"{pattern!r:.60} is no regular expression to be used: it repeats something {repeats} times")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise ValueError(f"{pattern!r:.60} is no regular expression: {error}") from None


def search_each(pattern: str, texts: Iterable[str]) -> dict[str, regex.Match | None]:
    """Return where a pattern occurs first in each text; None where it does not.

    Raises:
        ValueError: as `compile_pattern`, or it takes too long.
    """
    compiled, found = compile_pattern(pattern), {}
    end = time.monotonic() + LIMIT_S
    for text in texts:
        try:
            found[text] = compiled.search(text, timeout=max(end - time.monotonic(), 1e-3))
        except TimeoutError:
            raise ValueError(
                f"the pattern {pattern!r:.60} takes more than {LIMIT_S:g} s, at {text!r:.60}: write it without repeats "
                "of what is repeated, such as (a+)+"
            ) from None
    return found
