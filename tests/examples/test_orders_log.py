"""The demonstration's log is a file beside its data, and not on the screen."""

import logging
from pathlib import Path

from examples.orders.demo import LOG, _logged


def test_what_is_logged_is_in_the_file_while_the_demonstration_runs(tmp_path: Path) -> None:
    logger = logging.getLogger("eventlane.group")
    with _logged(tmp_path / LOG):
        logger.error("group %s: an event is dead", "inventory")
    logger.error("group %s: nobody demonstrates any more", "inventory")
    text = (tmp_path / LOG).read_text()
    assert "ERROR   eventlane.group: group inventory: an event is dead" in text
    assert "any more" not in text
