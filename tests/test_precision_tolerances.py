"""The tolerances of each dtype, and ``--bounds``."""

import pytest

from nemotron_npu.errors import SetupError
from nemotron_npu.precision.tolerances import TOLERANCES


def test_tolerances_change_by_name():
    """Each named tolerance changes, the others stay."""
    own = TOLERANCES["float32"]
    changed = own.with_changes("encoder=2, tokens=0.5")
    assert (changed.encoder, changed.tokens, changed.alone) == (2.0, 0.5, own.alone)
    assert own.with_changes(None) is own.with_changes("") is own


@pytest.mark.parametrize("wrong", ["layer=2", "encoder", "encoder=-1", "encoder=x", "encoder=nan", "mel=1,"])
def test_tolerances_refuse_what_is_no_percentage(wrong):
    """Unknown names, missing or negative numbers and NaN are errors that list the names."""
    with pytest.raises(SetupError, match="not a tolerance .use NAME=PERCENT, NAME one of mel, encoder"):
        TOLERANCES["float32"].with_changes(wrong)
