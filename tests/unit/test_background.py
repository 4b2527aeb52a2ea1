"""Tasks beside each other: what is raised when some of them fail."""

import logging

import pytest

from eventlane.background import cancelling_group
from eventlane.errors import HandlerStuck, StorageError


async def fail(error: Exception) -> None:
    raise error


async def run(*errors: Exception, body: Exception | None = None) -> None:
    async with cancelling_group() as tasks:
        for error in errors:
            tasks.create_task(fail(error))
        if body is not None:
            raise body


async def test_of_groups_that_fail_at_once_one_error_is_raised_and_the_others_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(HandlerStuck, match="billing"):
        await run(StorageError("disk full"), HandlerStuck("billing"))
    assert "another group failed, too: disk full" in caplog.text


async def test_what_the_body_raises_is_not_hidden_by_a_group_that_fails() -> None:
    with pytest.raises(KeyError, match="mine"):
        await run(StorageError("disk full"), body=KeyError("mine"))
