"""`eventlane prove overtake`: a key fails, others go on, kill -9 comes in between; the verdict."""

import argparse
import asyncio
import contextlib
import math
import secrets
import sys
import tempfile
import textwrap
from collections.abc import Generator
from pathlib import Path
from typing import Any

from eventlane import ConfigError
from eventlane.cli.output import show, show_line
from eventlane.testing.checker import Kind
from eventlane.testing.overtaking.job import made_app
from eventlane.testing.overtaking.ordeal import ChildEnded, Ordeal
from eventlane.testing.overtaking.proof import Proof, final, proof_of
from eventlane.wording import counted

__all__ = ["add_command", "run"]

_SECONDS_MIN = 5.0
"""So that every kill comes, and failures before and after it."""

_WIDTH = 98


def add_command(commands: Any) -> None:
    """Add the command."""
    prove = commands.add_parser("prove", help="see for yourself, on this machine")
    proofs = prove.add_subparsers(required=True, metavar="WHAT")
    overtake = proofs.add_parser(
        "overtake",
        help="one key fails, others go on, kill -9 three times: nothing is lost or overtaken",
    )
    overtake.add_argument(
        "--seconds", type=float, default=20.0, help="of traffic (default: %(default)g)"
    )
    overtake.add_argument("--seed", type=int, help="when to kill (default: by chance)")
    overtake.add_argument("--data", type=Path, metavar="DIR", help="keep database and history here")
    overtake.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Go through the ordeal, and say what it shows.

    Raises:
        ConfigError: It cannot be gone through so; nothing was started.
    """
    if options.broker or options.app:
        raise ConfigError(
            "prove makes a broker of its own and kills its processes: leave --broker and --app out."
        )
    if not _SECONDS_MIN <= options.seconds < math.inf:
        raise ConfigError(
            f"--seconds {options.seconds:g}: expected {_SECONDS_MIN:g} or more. In less, not every "
            "kill and failure comes to pass."
        )
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    with _directory(options.data) as directory:
        try:
            proof = asyncio.run(_overtake(directory, options.seconds, seed, quiet=options.json))
        except (ChildEnded, OSError) as error:
            if options.json:
                show_line({"error": type(error).__name__, "message": str(error)})
            print(f"failed: {error}", file=sys.stderr)
            return 1
    if options.json:
        show({"seed": seed, "clean": proof.clean, **_figures(proof)})
    else:
        _print(proof)
    return 0 if proof.clean else 1


@contextlib.contextmanager
def _directory(kept: Path | None) -> Generator[Path]:
    if kept is None:
        try:
            private = tempfile.TemporaryDirectory(prefix="eventlane-prove-")
        except OSError as error:
            raise ConfigError(f"expected a temporary directory (TMPDIR), got: {error}") from None
        with private as name:
            yield Path(name)
        return
    try:
        kept.mkdir(parents=True, exist_ok=True)
        is_empty = not any(kept.iterdir())
        with tempfile.TemporaryFile(dir=kept):
            pass
    except OSError as error:
        raise ConfigError(
            f"--data {kept}: expected a directory that can be written, got: {error.strerror}."
        ) from None
    if not is_empty:
        raise ConfigError(
            f"--data {kept}: expected a new or an empty directory, got one with files. What lies "
            "there already would be taken for part of the proof."
        )
    yield kept.absolute()


async def _overtake(directory: Path, duration_s: float, seed: int, *, quiet: bool) -> Proof:
    ordeal = Ordeal(
        command=lambda role, number: [
            *(sys.executable, "-P", "-m", "eventlane.testing.overtaking.job"),
            *(role, str(directory), str(number)),
        ],
        directory=directory,
        duration_s=duration_s,
        seed=seed,
        tell=(lambda line: None) if quiet else (lambda line: print(line, flush=True)),
    )
    ordeal.tell(
        f"one publisher, one worker, 50 keys, 250 events a second; in {directory}, seed {seed}\n"
        "of the key `unlucky` an event in 2 s fails three times, and is retried after 0.5 s each\n"
    )
    await ordeal.run()
    async with made_app(directory) as app:
        ordeal.record(await final(app))
    return proof_of(ordeal.history, kills=ordeal.kills)


def _figures(proof: Proof) -> dict[str, Any]:
    return {
        "acknowledged": proof.acknowledged,
        "handled": proof.handled,
        "handled_again": proof.handled_again,
        "failed": proof.failed,
        "kills": proof.kills,
        "meanwhile": proof.meanwhile,
        "anomalies": proof.anomalies,
        "checked": {str(kind): count for kind, count in proof.verdict.checked.items()},
        "verdict": str(proof.verdict).splitlines(),
    }


def _print(proof: Proof) -> None:
    other, found = proof.meanwhile, proof.anomalies
    print()
    for line in (
        (
            f"{proof.acknowledged:,} events acknowledged, {proof.handled:,} handled, "
            f"{proof.handled_again:,} of them again after a kill; {counted(proof.failed, 'run')} "
            f"failed; kill -9 {counted(proof.kills, 'time')}"
        ),
        (
            f"lost {proof.lost}, overtaken {found[Kind.OVERTAKE]}, "
            f"two of a key at once {found[Kind.TWO_AT_ONCE]}, "
            f"attempts gone down {found[Kind.ATTEMPTS_DOWN]}, "
            f"retried too early {found[Kind.EARLY_RETRY]}"
        ),
        (
            f"while the unlucky key waited ({other.waits} waits, {other.waited_s:.1f} s), others "
            f"were given {other.published:,} events: {other.handled:,} were handled meanwhile, the "
            f"latest {other.latest_s:.2f} s after it was published"
        ),
        "",
        *str(proof.verdict).splitlines(),
        (
            f"The other {len(proof.verdict.unchecked)} checks need settlements, which this ordeal "
            "does not record, or dead letters and replays, of which it has none. A simulation has "
            "all of them: python -m eventlane.testing.simulation --count 100"
        ),
    ):
        print(textwrap.fill(line, _WIDTH, subsequent_indent="    "))
    if proof.verdict.clean and not proof.clean:
        print("NOT PROVEN: the other keys did not go on, or nothing failed; is the machine busy?")
