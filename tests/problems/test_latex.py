"""What `math` reads of references and texts: all of it, or nothing."""

import pytest

from salvage.errors import SalvageError
from salvage.problems.latex import equal, read, reference, tidied
from salvage.problems.verifiers import check_answer, verifier

MATH500 = [  # shapes of answers in a set that people judge with it
    r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"\frac{14}{3}", "9", r"\text{Evelyn}", "42", "27", r"90^\circ",
    r"3\sqrt{13}", "6 - 5i", r"\frac 59", "5.4 \\text{ cents}", r"\text{June 20}", r"x \in [-2,7]", r"[-2,7]",
    r"(-\infty, 2) \cup (3, \infty)", r"\$32,\!348", "58,500", r"4210_{5}", "2516_8", r"\text{(C)}", "1,-2",
    r"1 \pm \sqrt{19}", r"137 \frac{1}{2}", "5x - 7y + 11z + 4 = 0", r"864 \mbox{ inches}^2", r"10\%", "3R^2",
    r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", r"\text{even}", "0.5", r"\cot x", r"-\frac{35}{9}",
    r"\tan^2 x", "2k+1", r"3 \text{ or } 5", r"\frac{3}{56}", "12,\\! 000", r"\{1\pm\sqrt{5},-2\}", r"\dfrac{9}{7}",
    r"15\mbox{ cm}^2", "y = 2x + 3", r"11\sqrt2", r"e^{i\pi}", r"\emptyset", r"70 \sqrt{2}",
]  # fmt: skip

PARTS = [  # a reference, and a part of it that is no answer
    (r"1-1/\mathrm{e}", "1"),
    (r"1-\frac{1}{\mathrm{e}}", "1"),
    (r"1-1/\operatorname{e}", "1"),
    (r"1-1/{\rm e}", "1"),
    (r"2+3\mathrm{i}", "5"),
    (r"3\mathbf{i}+4\mathbf{j}", "3"),
    (r"5-\mathbf{v}", "5"),
    (r"\pm 5", "5"),
    (r"2 \pm \sqrt{3}", "2"),
    ("[1,2)", "(1,2)"),
    (r"\{1,2,3\}", "3"),
    (r"x \in (1,2)", "2"),
    ("2t", "2"),
    ("3s", "3"),
    (r"\frac{2}{3}m", r"\frac{2}{3}"),
    ("1011_2", "1011"),
    (r"12\,500", "512"),
    (r"0.\overline{3}", "0"),
    (r"n \equiv 1 \pmod 3", "3"),
    (r"7 \pmod{11}", "7"),
    ("f'(x)", "f(x)"),
    ("2√3", "2"),
    ("x²", "x"),
    (r"1+\dots+n", "1"),
    (r"x \to 3", "3"),
    (r"5 \text{ or more}", "5"),
]


def judged(answer, text):
    return verifier("math")({"problem_id": "p", "answer": answer}, text)


@pytest.mark.parametrize(("answer", "part"), PARTS)
def test_case_16_a_part_of_a_reference_is_not_right_nor_the_whole_for_a_part(answer, part):
    assert not judged(answer, rf"so \boxed{{{part}}}")
    assert not judged(part, rf"so \boxed{{{answer}}}")
    assert judged(answer, rf"so \boxed{{{answer}}}")


@pytest.mark.parametrize("answer", MATH500)
def test_common_shapes_of_answers_are_taken_and_equal_themselves(answer):
    check_answer("math", answer)
    assert judged(answer, rf"so \boxed{{{answer}}}.")
    assert judged(answer, f"The answer is ${answer}$.")


@pytest.mark.parametrize(
    "answer",
    [
        "5 dollars today",
        "y = 2x+3 for all x",
        "the value is $5$",
        r"2+\ldots",
        "7 is the answer",
        "2 alpha",
        "5 squared",
        "",
    ],
)
def test_case_16_a_reference_that_would_be_read_in_part_is_refused(answer):
    with pytest.raises(SalvageError, match="math-verify cannot read whole"):
        check_answer("math", answer)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (r"1-1/\mathrm{e}", r"\boxed{\frac{e-1}{e}}"),
        (r"1-1/\mathrm{e}", r"so $1 - e^{-1}$"),
        (r"2+3\mathrm{i}", r"\boxed{2+3i}"),
        (r"12\,500", r"\boxed{12500}"),
        (r"0.\overline{3}", r"\boxed{\frac13}"),
        (r"0.1\overline{6}", r"\boxed{1/6}"),
        ("1011_2", r"\boxed{1011_{2}}"),
        (r"1011_{\text{two}}", r"\boxed{1011_{two}}"),
        ("5 apples", r"\boxed{5}"),
        ("5 cm", r"\boxed{5 \text{ cm}}"),
        ("5", r"\boxed{5\ \mathrm{kg}}"),
        (r"864 \mbox{ inches}^2", r"\boxed{864}"),
        ("90°", r"\boxed{90^\circ}"),
        (r"10\%", r"\boxed{10}"),
        ("2√3", r"\boxed{2\sqrt{3}}"),
        ("½", r"\boxed{0.5}"),
        ("x²", "$x^2$"),
        (r"$5$ and $6$", r"\boxed{5, 6}"),
        ("3", r"\boxed{3.}"),
    ],
)
def test_other_ways_to_write_a_reference_are_right(answer, text):
    assert judged(answer, text)


def test_what_takes_too_long_has_no_verdict(monkeypatch):
    from math_verify import parser
    from math_verify.errors import TimeoutException

    def late(*_, **__):
        raise TimeoutException

    gold = reference("3", 5)
    monkeypatch.setattr(parser, "extract_target_from_pred", late)
    with pytest.raises(SalvageError, match="the verifier math took longer than 5 s"):
        read(r"\boxed{3}", 5)
    assert equal(gold, gold, 5)


def test_prose_stays_as_it_is():
    prose = "It's the dog's food, and I eat 3 times a day; if not, 5 (or 6) of them."
    assert tidied(prose) == prose
