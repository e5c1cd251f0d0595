import pytest

from entropyfloor.rollouts.answers import final_answer, marked_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("#### 3\nno, wait\n####  4 \ntrailing words", "4"),
        ("The answer: 7", "7"),
        ("Answer:\n\n 42\n", "42"),
        ("Answer: 1\n#### 2", "2"),
        ("#### 2\nAnswer: 1", "1"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"Answer: $\boxed{5}$", "5"),
        (r"\boxed{1} then Answer: 2", "2"),
        (r"cut off \boxed{12", "12"),
        ("Answer:", ""),
        ("one\ntwo\n\n", "two"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_unmarked_text_has_no_marked_answer():
    assert marked_answer("first line\n12") is None
