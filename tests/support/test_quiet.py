import logging
import warnings

import pytest

from icnets.support.quiet import silence


def test_silence_lasts_for_a_while_and_errors_pass(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    parent = logging.getLogger("lightning.pytorch")
    before = parent.level
    with silence():
        warnings.warn("few workers", UserWarning, stacklevel=1)
        logger.warning("advice")
        logger.error("mistake")
    assert [record.message for record in caplog.records] == ["mistake"]
    assert parent.level == before
    with pytest.warns(UserWarning, match="few workers"):
        warnings.warn("few workers", UserWarning, stacklevel=1)
