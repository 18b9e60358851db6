"""A search killed again and again: interruptions.py PUZZLE [--kills N] [--seconds S] [--pairing SIGNAL] [--json FILE].

Searches PUZZLE for S seconds in this process, noting what the checkpoint would hold after every call. Then the command line
searches it with a checkpoint, is killed with SIGKILL at random moments and goes on each time; after every kill the file has
to be whole, and to hold what the uninterrupted search held at the same place. PUZZLE has to take longer than S.
"""

import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import write_report

import dropjax
from dropjax import console
from dropjax.core.options import Options
from dropjax.core.puzzle import Puzzle
from dropjax.io.loading import load
from dropjax.pairing.signals import CHOICES
from dropjax.runtime import device
from dropjax.runtime.journal import Journal, Levels, digest, read_checkpoint
from dropjax.runtime.writing import ensure_writable
from dropjax.search.solving import identity

Place = tuple[int, ...]
"""Calls ended at each level."""


def place(levels: Levels) -> Place:
    """Where a search is."""
    return tuple(map(len, levels))


class Recording(Journal):
    """Notes a digest of all results after every call, and writes nothing."""

    def __init__(self, identity: dict[str, str]) -> None:
        super().__init__(Path("nowhere"), identity, every=0)
        self.digests: dict[Place, str] = {}

    def write(self) -> None:
        """Notes it."""
        self.digests[place(self.levels)] = digest(self.levels)


def uninterrupted(puzzle: Puzzle, options: Options, seconds: float) -> dict[Place, str]:
    """The digests of a search, place by place."""
    recording = Recording(identity(puzzle, options))
    solution = dropjax.solve(puzzle, options, journal=recording, time_limit=seconds)
    if solution.stop_reason != "time limit":
        raise SystemExit(f"expected a puzzle that takes more than {seconds:g} s, got one that ended: {solution.stop_reason}")
    stages = ", ".join(f"{stage.name} {stage.seconds:.0f} s" for stage in solution.stages if stage.seconds >= 1)
    print(f"uninterrupted: {len(recording.digests)} places in {seconds:g} s ({stages})", flush=True)
    return recording.digests


def killed(command: list[str], moment: float) -> bool:
    """Runs the command and kills it after `moment` seconds; False where it had ended by itself."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, err = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True
    if process.returncode not in (console.SOLVED, console.NOT_SOLVED):
        raise SystemExit(f"expected a search, got exit status {process.returncode}: {err[-300:]}")
    return False


def main() -> int:
    """Exit status 0 if every resumed search went through the uninterrupted one's states, 1 if one did not."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("puzzle", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--longest", type=float, default=15.0, metavar="S", help="a process is killed within this time")
    parser.add_argument("--pairing", choices=CHOICES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.json is not None:
        ensure_writable(args.json)
    device.configure()
    puzzle = load(args.puzzle)
    options = Options(pairing=args.pairing)
    expected = uninterrupted(puzzle, options, args.seconds)
    chance = random.Random(args.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        command = [sys.executable, "-m", "dropjax.solve", str(args.puzzle), "--checkpoint", str(path), "--quiet"]
        command += ["--pairing", args.pairing] if args.pairing else []
        while len(rows) < args.kills:
            resume = ["--resume"] if path.exists() else []
            moment = chance.uniform(1, args.longest)
            if not killed([*command, *resume], moment):
                path.unlink()
                continue
            levels = read_checkpoint(path, identity(puzzle, options)) if path.exists() else [[]]
            at = place(levels)
            if at > max(expected):
                print(f"at {at}, beyond the uninterrupted search: from the start again", flush=True)
                path.unlink()
                continue
            same = at == (0,) or expected.get(at) == digest(levels)
            rows.append({"kill": len(rows) + 1, "after": moment, "resumed": bool(resume), "place": at, "same": same})
            print(f"kill {len(rows)} after {moment:.1f} s at {at}: {'as uninterrupted' if same else 'OTHER'}", flush=True)
        left = [p.name for p in Path(folder).iterdir() if p != path and not p.name.endswith(".tmp")]
    others = sum(not row["same"] for row in rows)
    print(
        f"{len(rows)} kills, {sum(row['resumed'] for row in rows)} resumed, {others} with other states, broken files: {left}"
    )
    write_report(args.json, rows)
    return 1 if others or left else 0


if __name__ == "__main__":
    console.run_command(main)
