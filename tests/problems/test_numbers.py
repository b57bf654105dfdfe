r"""Numbers as people write them: what is read, and what is left unread since a part of it would be wrong."""

import time
from fractions import Fraction

import pytest

from salvage.errors import SalvageError
from salvage.problems.numbers import Number, reference, stated
from salvage.problems.verifiers import check_answer, verifier

RIGHT = [
    # thousands
    ("9500", r"\boxed{\$9{,}500}"),
    ("12500", r"= 12\,500"),
    ("9500", r"so it is $9{,}500$ dollars"),
    ("10000", r"10,\!000"),
    ("12500", "12\u2009500"),
    ("12500", "12\u202f500 km"),
    ("12500", "12\u00a0500"),
    ("12500", "it is 12 500"),
    ("1234567", "1 234 567"),
    ("12500", "12'500"),
    ("12500", "12’500"),
    ("100000", "1,00,000 rupees"),
    ("1234.5", "1.234,50 €"),
    ("1234567", "1.234.567"),
    ("1234567.89", "1,234,567.89"),
    ("12500", r"12~500"),
    ("12500", r"12\;500"),
    # currency and units
    ("18", r"\boxed{18} dollars. (He keeps 3 eggs.)"),
    ("18", "US$18"),
    ("18", "Rs. 18"),
    ("18", "Rs18"),
    ("18", "€18"),
    ("18", "18€"),
    ("18", r"\boxed{\text{Rs. } 18}"),
    ("18", r"\boxed{18 \text{ dollars}}"),
    ("18", r"\boxed{18\ \mathrm{km/h}}"),
    ("25", r"\boxed{25 \text{ cm}^2}"),
    ("25", "The area is 25 cm^2."),
    ("25", "25 m²"),
    ("90", r"\boxed{90^\circ}"),
    ("90", "90°"),
    ("42", r"\boxed{\text{42}}"),
    ("42", r"\boxed{\textbf{42}}"),
    ("18", "**18**"),
    ("-20", "-$20"),
    ("-20", "$-20"),
    ("5", "5kg"),
    # fractions
    ("1/2", r"\boxed{\frac{1}{2}}"),
    ("1/2", r"\boxed{\dfrac{1}{2}}"),
    ("1/2", r"$\tfrac12$"),
    ("-1/2", r"\boxed{-\frac{1}{2}}"),
    ("-1/2", r"\boxed{\frac{-1}{2}}"),
    ("0.5", "1 / 2"),
    ("1/2", "½"),
    ("3/2", "1½ cups"),
    ("3/2", "1 1/2 cups"),
    ("3/2", r"\boxed{1\frac{1}{2}}"),
    ("3/2", r"\boxed{1 \frac12}"),
    ("2500/3", r"\boxed{\frac{2{,}500}{3}}"),
    ("3", "6/2"),
    # percent and large words
    ("25", r"\boxed{25\%}"),
    ("0.25", "25%"),
    ("25", "25 percent"),
    ("25%", "0.25"),
    ("25%", "25"),
    ("2000000", "about 2 million people"),
    ("2", "2 million"),
    ("5000", "5k"),
    # powers of ten
    ("300000", r"3 \times 10^{5}"),
    ("300000", r"\boxed{3\cdot10^5}"),
    ("300000", "3 × 10⁵"),
    ("300000", "3x10^5"),
    ("300000", "3*10**5"),
    ("0.0003", r"$3 \times 10^{-4}$"),
    ("0.0003", "3 × 10⁻⁴"),
    ("300000", "3e5"),
    ("300000", "3E+5"),
    ("1000", r"\boxed{10^3}"),
    # signs
    ("-3", "x = \u22123"),
    ("-3", r"\boxed{-3}"),
    ("-3", r"\boxed{- 3}"),
    ("-3", "x = - 3"),
    ("-3", "x = \u20133"),
    ("3", r"\boxed{+3}"),
    # where it stands
    ("7", r"\boxed{3} no, \boxed{7} and that is 12 times as much"),
    ("18", r"\boxed{x = 18}"),
    ("18", r"\boxed{x = 6 + 12 = 18}"),
    ("18", r"\[\boxed{18}\] since 3 are left"),
    ("18", r"\fbox{18} of 20"),
    ("18", r"\boxed 18 of 20"),
    ("18", r"I put it in \boxed{}. So 18"),
    ("72", "48 + 24\n#### 72\nQuestion: next 5"),
    ("18", "#### $18.00\n3 left"),
    ("15", "#### Step 2: compute\nso 5*3 = 15"),
    ("18", "<answer>18</answer> (3 eggs are left)"),
    ("18", r"<answer>\boxed{18}</answer> and 3"),
    ("18", "The answer is 18. He keeps 3 eggs."),
    ("18", "The answer is: $18$, since he sold 9."),
    ("18", "**Final Answer:** 18 dollars (3 eggs are left)"),
    ("18", "answer = 9 * 2 = 18\n3 left"),
    ("9", "The answer is 7. Wait, that is 2 short: 9"),
    ("7", "The answer is not 5 but 7"),
]

WRONG = [
    ("500", r"\boxed{\$9{,}500}"),
    ("500", "12 500"),
    ("3", r"\boxed{2\sqrt{3}}"),
    ("2", r"\boxed{2\sqrt{3}}"),
    ("3", r"so x = 2\sqrt{3}"),
    ("3", r"so x = 2√3"),
    ("3", r"\boxed{3\pi}"),
    ("3", "so 3π"),
    ("3", r"\boxed{3x}"),
    ("3", "so y = 3x"),
    ("2", "so x^2"),
    ("2", r"\boxed{x^2}"),
    ("5", r"\boxed{5^2}"),
    ("5", r"\boxed{(3, 5)}"),
    ("5", r"\boxed{3, 5}"),
    ("5", r"\boxed{3 \text{ or } 5}"),
    ("5", r"\boxed{x = 3, y = 5}"),
    ("5", r"\boxed{5 \text{ or more}}"),
    ("5", r"\boxed{x \ge 5}"),
    ("5", r"\boxed{\pm 5}"),
    ("5", "x = ±5"),
    ("5", r"\boxed{5!}"),
    ("3", r"\boxed{10-3}"),
    ("7", r"\boxed{10-3}"),
    ("2", r"\boxed{\frac{1}{2}}"),
    ("1", r"\boxed{\frac{1}{2}}"),
    ("2", r"\boxed{\frac{\sqrt{3}}{2}}"),
    ("1/2", "1 1/2"),
    ("12", r"so it is \boxed{12"),
    ("12", r"\boxed{5} or rather \boxed{12"),
    ("3", r"\boxed{18} dollars. (He keeps 3 eggs.)"),
    ("5", r"\boxed{\text{none}} of the 5"),
    ("0.5", "0.5%"),
    ("0.25", "25"),
    ("50", "0.5"),
    ("5", "3,5"),
    ("3", "3,5"),
    ("30", "at 3:30"),
    ("2024", "on 3/4/2024"),
    ("3", "version 1.2.3"),
    ("12", "take B12"),
    ("1", "x_1"),
    ("1011", r"\boxed{1011_2}"),
    ("43", "42 or 43"),
    ("43", "The answer is 42 or 43"),
    ("7", "The answer is 7? Let me see: 3 + 6 = 9"),
    ("5", "3 × 10⁵"),
    ("5", r"3 \times 10^5"),
    ("-3", "10-3"),
    ("3", "- 3 apples and 4"),
    ("3", r"\boxed{-3}"),
    ("0", "1,00,000"),
    ("18", "<answer>19</answer> and not 18"),
    ("1", "1e99999999"),
]


def is_right(answer, text):
    return verifier("numeric")({"problem_id": "p", "answer": answer}, text)


@pytest.mark.parametrize("text", [r"\boxed{\$9{,}500}", r"$9{,}500$", r"\$ 9{,}500.00", r"<answer>9{,}500</answer>"])
def test_case_10_a_comma_in_braces_is_inside_of_a_number(text):
    assert is_right("9500", text) and not is_right("500", text) and not is_right("9", text)


@pytest.mark.parametrize("text", [r"= 12\,500", r"= 12\;500", r"\boxed{12\,500}", "= 12 500", "= 12\u2009500"])
def test_case_11_a_thin_space_is_inside_of_a_number(text):
    assert is_right("12500", text) and not is_right("500", text) and not is_right("12", text)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{18} dollars. (He keeps 3 eggs.)",
        r"\boxed{3} eggs are kept, so \boxed{18} dollars for 9",
        r"<answer>18</answer> and 3 eggs",
        "#### 18\nHe keeps 3 eggs.",
    ],
)
def test_case_12_the_last_box_wins_over_later_numbers(text):
    assert is_right("18", text) and not is_right("3", text) and not is_right("9", text)


@pytest.mark.parametrize("text", [r"\boxed{\frac{1}{2}}", r"$\dfrac12$", r"\tfrac{1}{2}", r"\frac{2}{4}", "1/2"])
def test_case_13_a_fraction_is_one_number(text):
    assert is_right("1/2", text) and not is_right("2", text) and not is_right("1", text)


@pytest.mark.parametrize(("answer", "text"), RIGHT)
def test_numbers_are_read_as_people_write_them(answer, text):
    assert is_right(answer, text)


@pytest.mark.parametrize(("answer", "text"), WRONG)
def test_what_is_read_in_part_is_not_accepted(answer, text):
    assert not is_right(answer, text)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("18", 18),
        ("$1,234.50", Fraction(2469, 2)),
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72", 72),
        (r"\frac{1}{2}", Fraction(1, 2)),
        ("x = 5", 5),
        ("So the answer is 18, of 20.", 18),
        ("12 apples", 12),
    ],
)
def test_a_reference_is_read_whole(answer, value):
    assert reference(answer) == Number(Fraction(value))


@pytest.mark.parametrize(
    "answer", ["(3, 5)", "3 or 5", r"2\sqrt{3}", "3x+1", "3:30", "10-3", "3 hours 20 minutes", "5!"]
)
def test_case_16_a_reference_of_more_than_a_number_is_refused(answer):
    with pytest.raises(SalvageError, match="which is more than one number alone"):
        check_answer("numeric", answer)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "\\frac{" * 20_000,
        "\\sqrt{{" * 20_000,
        "1 " * 50_000,
        "1," * 50_000,
        "1." * 50_000,
        "9" * 100_000,
        "1/" * 50_000,
        "5 " + "a " * 50_000 + "^2",
        "answer is " * 20_000,
        "<answer>" * 20_000,
        "#### 1 2\n" * 20_000,
        "{" * 100_000,
        " " * 100_000 + "5",
    ],
    ids=lambda text: text[:8],
)
def test_hostile_texts_are_read_in_a_moment(text):
    begun = time.process_time()
    stated(text)
    assert time.process_time() - begun < 2
