"""What a request costs in our batcher and in Ray Serve's, BentoML's and LitServe's, with the same model, in turns.

    python tests/benchmarks/bench_batcher_peers.py [--quick] [--peers "ray alone" …] [--rounds 4] [--seconds 0.5]

Ours and one peer's batcher run in one process of the peer's own environment and take turns (A B B A). No HTTP anywhere:

- "alone" is the batcher and nothing of its server, in the callers' process: Ray's `@serve.batch` without a cluster,
  BentoML's `CorkDispatcher`, LitServe's batching loop in a thread with a plain queue. Each is cheaper there than it
  can be in use.
- "served" is what its HTTP handler or its handle calls: Ray Serve's deployment on a local cluster through its handle,
  BentoML's service through `batch_infer`, LitServe's worker process behind its own queues.

Three situations, batches of at most 32, a row of 16 floats a request: "full", 256 callers and a model that does
nothing; "sleeping", 64 callers and a model that sleeps 2 ms a batch; "lone", one caller and a model that does nothing,
with the least waiting the peer allows. Models run beside the event loop, but for Ray: there one that does nothing runs
on the loop, as its documentation shows.

Overhead is microseconds a request beyond the bare model called with full batches and (where the model takes no time)
beyond the same callers and futures with no batcher at all. `wall` is what limits the rate; `CPU` is this process's
time and hardly suffers from a busy machine (a peer's other processes are not in it). Goal: 5 × lower, by both clocks;
UNDECIDED where ours is too small to tell.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "benchmarks")]

from goals import Goals, arguments  # noqa: E402
from intervals import ratio, shown  # noqa: E402
from peer_environments import PeerUnavailable, python_with, version_in  # noqa: E402

PACKAGES = {"ray": "ray[serve]", "bentoml": "bentoml", "litserve": "litserve"}

ARMS = ("ray alone", "bentoml alone", "litserve alone", "ray served", "bentoml served", "litserve served")

MODES = ("full", "sleeping", "lone")

LEAST = 0.1
"""Microseconds: an overhead below is taken as this, for it is less than the clocks tell apart."""

GOAL = 5.0

ARM = Path(__file__).with_name("peer_batchers.py")


def main() -> int:
    """Every peer in every situation; one line each."""
    parser = arguments(__doc__, "6 minutes, and some to install the peers the first time,")
    parser.add_argument("--peers", nargs="+", choices=ARMS, default=ARMS, metavar="PEER", help=", ".join(ARMS))
    parser.add_argument("--rounds", type=int, default=4, help="at least 3")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.3 s: shows that it works")
    asked = parser.parse_args()
    goals = Goals()
    rounds, seconds = (3, 0.3) if asked.quick else (asked.rounds, asked.seconds)
    print(f"{rounds} rounds of {seconds} s; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("overhead in µs a request (median of the rounds)     ours   theirs   theirs / ours          goal of 5 ×")
    for peer in asked.peers:
        package = PACKAGES[peer.split()[0]]
        try:
            python = python_with(peer.split()[0], package)
        except PeerUnavailable as reason:
            goals.undecided(f"{peer}: 5 × lower overhead", f"cannot be installed for this Python: {reason}"[:100])
            continue
        print(f"{peer} ({package} {version_in(python, package.partition('[')[0])})", flush=True)
        groups = [MODES] if peer == "ray served" else [(mode,) for mode in MODES]  # a cluster takes long to start
        for modes in groups:
            found = measured(python, peer, rounds, seconds, modes)
            for mode in modes:
                if mode in found:
                    show(goals, peer, mode, found[mode])
                else:
                    goals.undecided(f"{peer}, {mode}: {GOAL:g} × lower overhead", "the peer did not run")
    return goals.judged()


def measured(python: Path, peer: str, rounds: int, seconds: float, modes: tuple[str, ...]) -> dict[str, list[dict]]:
    """Situation → one entry a round. Empty, and said, when the peer failed."""
    command = [str(python), str(ARM), peer, str(rounds), str(seconds), *modes]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if ended.returncode:
        print(f"   {', '.join(modes)}: did not run: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
        return {}
    return json.loads(ended.stdout.splitlines()[-1])


def show(goals: Goals, peer: str, mode: str, found: list[dict]) -> None:
    """A line each for wall and CPU time."""
    for number, clock in enumerate(("wall", "CPU")):
        beyond = {"full": 1.0, "lone": 1.0, "sleeping": number}[mode]  # asleep, the callers' own work is hidden
        overheads = {
            arm: [
                max(once[arm][number] - beyond * once["nothing"][number] - once["model"][number], LEAST)
                for once in found
            ]
            for arm in ("ours", "theirs")
        }
        times = ratio(overheads["theirs"], overheads["ours"])
        title = f"{peer}, {mode}, {clock}: {GOAL:g} × lower overhead"
        too_small = overheads["ours"].count(LEAST) > len(found) // 2
        if too_small and times.low < GOAL:
            goals.undecided(title, "ours is too small to tell")
        else:
            goals.at_least(title, times, GOAL, 1)
        if too_small:
            goal = "ours is too small to tell"
        elif times.low >= GOAL or times.high < GOAL:
            goal = "met" if times.low >= GOAL else "missed"
        else:
            goal = "perhaps" if times.value >= GOAL else "hardly"
        ours, theirs = (statistics.median(overheads[arm]) for arm in ("ours", "theirs"))
        print(f"   {mode:9} {clock:5} {'':28} {ours:9.2f} {theirs:8.1f}   {shown(times, 1):22} {goal}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
