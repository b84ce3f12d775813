"""What all tries share: the process that makes them, and all that the verbs that write need."""

import pytest

from tests.reliability.trying import Job, trying


@pytest.fixture(scope="session")
def process():
    with trying() as found:
        yield found


@pytest.fixture(scope="session")
def written(process, tmp_path_factory):
    root = tmp_path_factory.mktemp("written") / "disk"
    code, _, said = process.run(Job("write", root))
    assert code == 0, said
    return root
