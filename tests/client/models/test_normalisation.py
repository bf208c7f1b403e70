from __future__ import annotations

import pytest

from arcface_client.errors import InputError
from arcface_client.models.normalisation import IMAGENET, NAMED, UNIT, Normalisation


@pytest.mark.parametrize("known", NAMED.values(), ids=NAMED)
def test_an_argument_is_read_as_the_normalisation_that_it_was_made_of(known: Normalisation) -> None:
    assert Normalisation.parse(known.to_argument()) == known


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("(x - 128) / 128", Normalisation.uniform(128, 128)),
        ("(x \N{MINUS SIGN} 127.5)/127.5", Normalisation.uniform(127.5, 127.5)),
        (str(UNIT), UNIT),
        (str(IMAGENET), IMAGENET),
        ("129,1", Normalisation.uniform(129, 1)),
    ],
)
def test_a_normalisation_is_read_as_messages_print_it(text: str, meant: Normalisation) -> None:
    assert Normalisation.parse(text) == meant


@pytest.mark.parametrize("text", ["0.5,0.5", "0.485,0.456,0.406,0.229,0.224,0.225", "(x - 0.5) / 0.5"])
def test_numbers_for_pixels_of_0_to_1_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"on the scale of 0 to 1; pixels are 0 to 255: .* 127\.5,127\.5"):
        Normalisation.parse(text)
