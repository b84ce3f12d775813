from tests.warm_processes import HEAVY, answer_of_one


def test_they_have_imported_what_is_heavy_and_nothing_of_this_package():
    """A worker that lacks an import of ours would otherwise fail for users only."""
    loaded = answer_of_one("set(__import__('sys').modules)")
    assert loaded >= {*HEAVY, "torch", "scipy"}
    at_every_start = {"nnunet_ssl", "nnunet_ssl.discovery", "nnunet_ssl.discovery.startup"}
    assert {name for name in loaded if name.partition(".")[0] == "nnunet_ssl"} == at_every_start


def test_they_have_the_environment_of_the_test_and_random_numbers_of_their_own(monkeypatch):
    for value in ("1", "2"):
        monkeypatch.setenv("nnUNet_ssl_test", value)
        assert answer_of_one("__import__('os').environ['nnUNet_ssl_test']") == value
    first, second = (answer_of_one("__import__('numpy').random.random()") for _ in range(2))
    assert first != second
