"""docs/troubleshooting.md: each message that it quotes is one that the code says."""

import ast
import re
from itertools import chain
from pathlib import Path

import nnunetv2
import pytest

from nnunet_ssl.training.options import ENVIRONMENT_VARIABLE

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
CODE = (ROOT / "nnunet_ssl", Path(nnunetv2.__file__).parent / "utilities")
KNOWN = {"{ENVIRONMENT_VARIABLE}": ENVIRONMENT_VARIABLE}
OF_TORCH = {"CUDA out of memory"}
GAP = "…"
COMMANDS = ("nnunet_ssl ", "nnUNetv2_", "python ", "export ")


def written(node: ast.AST) -> str:
    """Return a text as it stands in code, with a gap for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else GAP
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    inside = "{" + ast.unparse(node.value) + "}" if isinstance(node, ast.FormattedValue) else ""
    return KNOWN.get(inside, GAP)


def texts_of(folder: Path) -> set[str]:
    """Return all texts of a folder's modules."""
    nodes = chain.from_iterable(ast.walk(ast.parse(file.read_text())) for file in folder.rglob("*.py"))
    return {
        " ".join(written(node).split()) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
    }


def messages() -> list[str]:
    """Return the sentences that the page quotes: neither commands, options nor names."""
    points = re.split(r"^\* ", PAGE, flags=re.MULTILINE)[1:]
    quoted = chain.from_iterable(re.findall(r"`([^`]*)`", " ".join(point.split())) for point in points)
    return [one for one in quoted if re.search(r"[a-z]{2} [a-z…]|… [a-z]", one) and not one.startswith(COMMANDS)]


@pytest.fixture(scope="module")
def said() -> str:
    """All texts of the code, each on a line."""
    return "\n".join(sorted(chain.from_iterable(map(texts_of, CODE))))


def is_said(message: str, said: str) -> bool:
    """Return whether the parts of a message stand in one text, in their order."""
    parts = [part.strip() for part in message.split(GAP) if part.strip()]
    return message in OF_TORCH or re.search(".*".join(map(re.escape, parts)), said) is not None


@pytest.mark.parametrize("message", messages())
def test_each_message_is_said_by_the_code(said, message):
    assert is_said(message, said)


@pytest.mark.parametrize("message", ["… holds a walk already", "and train anew … holds a run already"])
def test_a_message_that_nobody_says_is_found(said, message):
    assert not is_said(message, said)
    assert len(messages()) > 40
