import resource
import time
from pathlib import Path

import pytest

from nnunet_ssl.data import patterns
from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.data.patterns import compile_pattern, search_each


@pytest.fixture
def _little_memory():
    """Let a pattern that takes all memory fail alone: 1 GiB more than there is taken by now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_first_occurrence_in_each_text():
    found = search_each(r"^(p\d+)(?=_)", ["p1_a", "p22_b", "x"])
    assert {text: match and match[1] for text, match in found.items()} == {"p1_a": "p1", "p22_b": "p22", "x": None}


@pytest.mark.parametrize("texts", [["a" * 60 + "!"], ["a" * 14 + "!" * n for n in range(1, 2000)]], ids=["one", "many"])
def test_a_pattern_that_would_not_end_is_stopped(monkeypatch, texts):
    monkeypatch.setattr(patterns, "LIMIT_S", 0.3)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"'\(\?:a\|a\)\*\$' takes more than 0.3 s, at 'aaa"):
        search_each("(?:a|a)*$", texts)
    assert time.process_time() - start < 5


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(case", r"^'\(case' is no regular expression: missing \)"),
        (3, "^3 is no regular expression: it is no text"),
        ("(((a{1000}){1000}){1000}){1000}", "it repeats something 1000000000000 times"),
        (r"(\d{2,99}){200}b", "it repeats something 19800 times"),
        ("(a{,200}){200,}", "it repeats something 40000 times"),
        ("(" * 499 + ")" * 499, "is no regular expression: maximum recursion depth"),
        ("a" * 1001, "it has more than 1000 letters"),
    ],
)
def test_a_pattern_that_is_none(pattern, message):
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as refused:
        compile_pattern(pattern)
    assert len(str(refused.value)) < 200
    assert time.process_time() - start < 3


@pytest.mark.parametrize("pattern", [r"^(\d{4})\d$", r"^(\d+(?=_\d*HC$)|.+_test$)", r"a{3}b{99}", "x{2,}"])
def test_patterns_in_use_stay(pattern):
    compile_pattern(pattern)


def test_patients_are_found_in_bounded_time(monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT_S", 0.3)
    with pytest.raises(ValueError, match="takes more than 0.3 s"):
        patients_of(["a" * 40 + "!"], "((?:a|a)*)$")
