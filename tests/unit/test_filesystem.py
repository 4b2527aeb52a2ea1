"""A broker on a network file system is refused with the reason; a doubtful one is warned of."""

import logging
from pathlib import Path

import pytest

from eventlane import ConfigError
from eventlane.brokers import connect
from eventlane.brokers.embedded import filesystem
from eventlane.cli import main


def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *mounts: tuple[Path, str]) -> None:
    """Have this be what is mounted."""
    lines = ["/dev/sda1 / ext4 rw 0 0", "proc /proc proc rw 0 0"]
    for place, kind in mounts:
        escaped = str(place).replace(" ", "\\040")
        lines.append(f"server:/export {escaped} {kind} rw,vers=4.2 0 0")
    table = tmp_path / "mounts"
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", table)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs"])
async def test_a_network_file_system_is_refused_and_nothing_is_made(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "a share"
    mount(tmp_path, monkeypatch, (share, kind))
    with pytest.raises(ConfigError, match=rf"expected a local file system, got {kind} \(mounted"):
        await connect(f"embedded:{share / 'data'}")
    assert not share.exists()


async def test_a_link_to_one_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share, link = tmp_path / "share", tmp_path / "link"
    share.mkdir()
    link.symlink_to(share)
    mount(tmp_path, monkeypatch, (share, "nfs4"))
    with pytest.raises(ConfigError, match="got nfs4"):
        await connect(f"embedded:{link}")


@pytest.mark.parametrize("kind", ["9p", "virtiofs", "fuse.unknown"])
async def test_what_may_be_one_is_warned_of(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mount(tmp_path, monkeypatch, (tmp_path / "share", kind))
    with caplog.at_level(logging.WARNING):
        await (await connect(f"embedded:{tmp_path / 'share'}")).aclose()
    assert f"is on {kind}" in caplog.text


async def test_a_local_disk_below_or_beside_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    share, local = tmp_path / "share", tmp_path / "share" / "local"
    mount(tmp_path, monkeypatch, (share, "nfs4"), (local, "xfs"))
    for place in (local, tmp_path / "shared"):
        await (await connect(f"embedded:{place}")).aclose()
    # What was mounted over it later is what is there.
    mount(tmp_path, monkeypatch, (share, "nfs4"), (share, "ext4"))
    await (await connect(f"embedded:{share}")).aclose()
    assert caplog.text == ""


async def test_without_a_table_nothing_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "none")
    await (await connect(f"embedded:{tmp_path / 'data'}")).aclose()


def test_the_command_line_says_why_as_a_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "eventlane.db").touch()
    mount(tmp_path, monkeypatch, (tmp_path / "share", "cifs"))
    assert main(["--broker", f"embedded:{tmp_path / 'share'}", "status", "--json"]) == 2
    said = capsys.readouterr()
    assert '"error": "ConfigError"' in said.out
    assert "expected a local file system, got cifs" in said.err
