from multiprocessing.pool import ThreadPool

import pytest

from nnunet_ssl.data.locks import WHOLE, Part, one_after_the_other, preprocessing_alone


def test_parts_have_no_case_in_common_and_are_all():
    cases = [f"case{i}" for i in range(1000)]
    parts = [Part(number, 7).of(cases) for number in range(7)]
    assert sorted(case for part in parts for case in part) == sorted(cases)
    assert all(100 < len(part) < 190 for part in parts)
    assert WHOLE.of(cases) == cases
    assert Part(3, 7).of(cases[::2]) == [case for case in parts[3] if case in cases[::2]]  # whatever else there is


def test_parts_are_worked_on_at_once_but_none_twice(tmp_path):
    with preprocessing_alone(tmp_path, Part(0, 2)), preprocessing_alone(tmp_path, Part(1, 2)):
        with (
            pytest.raises(RuntimeError, match=r"in parts \(.*part_1_of_2.lock\): wait for it"),
            preprocessing_alone(tmp_path, Part(1, 2)),
        ):
            pass
        with (
            pytest.raises(RuntimeError, match=r"in parts \(.*part_0_of_2.lock\): wait for it"),
            preprocessing_alone(tmp_path, Part(0, 3)),
        ):
            pass
    with preprocessing_alone(tmp_path, Part(0, 3)):
        pass


@pytest.mark.parametrize(("first", "second"), [(WHOLE, WHOLE), (WHOLE, Part(0, 2)), (Part(0, 2), WHOLE)])
def test_all_cases_are_kept_from_everybody_else(tmp_path, first, second, capsys):
    order = []

    def work(part: Part) -> None:
        with preprocessing_alone(tmp_path, part):
            order.append("second")

    with ThreadPool(1) as pool:
        with preprocessing_alone(tmp_path, first):
            waiting = pool.apply_async(work, (second,))
            while "waiting for it" not in capsys.readouterr().out and not waiting.ready():
                waiting.wait(0.01)
            order.append("first")
        waiting.get(60)
    assert order == ["first", "second"]


def test_a_lock_that_cannot_be_had_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    with one_after_the_other(tmp_path / "file" / "lock", "does it"):
        pass


def test_an_error_frees_the_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), one_after_the_other(tmp_path / "lock", "does it"):
            raise KeyError
