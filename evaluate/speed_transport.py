"""Sinkhorn-Newton-Sparse against POT to one tolerance, for ``genflow.evaluate.speed transport``."""

from typing import Any

from genflow.evaluate.console import progress_bar
from genflow.evaluate.transport import PEERS, Timing, error_text, make_problem, time_ours, time_pot

__all__ = ["compare_with_pot"]

ETA = 1200.0
TOLERANCE = 1e-9


def compare_with_pot(quick: bool) -> list[dict[str, Any]]:
    """Rows for speed's table: seconds to a marginal error of 1e-9, ours and POT's log-domain and fastest method.

    A method of POT that is not there after its time (about 6 s; epsilon scaling 24) stands with the time it took, and
    its name says so: the ratio is then an upper bound. The fastest is that of the methods which converge, or which give
    no NaN at least.
    """
    kinds, sizes, seconds = (("points",), (40,), 0.3) if quick else (("random", "points"), (500, 1000, 2000), 6.0)
    time_ours(make_problem("random", 16), 1 / ETA, 1e-3, curve=False)  # what a first call in a process sets up
    rows = []
    with progress_bar("transport", len(kinds) * len(sizes) * (1 + len(PEERS))) as advance:
        for kind in kinds:
            for size in sizes:
                problem = make_problem(kind, size)
                ours = min((time_ours(problem, 1 / ETA, TOLERANCE, curve=False) for _ in range(2)), key=_seconds)
                advance(1)
                peers = {}
                for method in PEERS:
                    peers[method] = time_pot(problem, 1 / ETA, TOLERANCE, method, seconds)
                    advance(1)
                log_domain = peers.pop("sinkhorn_log")
                fastest = min(peers.values(), key=lambda peer: (peer.error is None, not peer.reached, peer.seconds))
                rows += [_row(f"{kind}, n = {size}, eta = {ETA:g}", ours, peer) for peer in (log_domain, fastest)]
    return rows


def _seconds(timing: Timing) -> float:
    return timing.seconds


def _row(what: str, ours: Timing, peer: Timing) -> dict[str, Any]:
    counts = f"{ours.iterations['sinkhorn']} sweeps + {ours.iterations['newton']} Newton steps"
    done = f"{peer.iterations.get('sinkhorn', 'no')} iterations{'' if peer.reached else ', stopped'}"
    return {
        "what": what,
        "ours_name": f"{ours.name}, {counts}, L1 error {error_text(ours.error, ours.stopped)}",
        "peer_name": f"{peer.name}, {done}, L1 error {error_text(peer.error, peer.stopped)}",
        "ours": ours.seconds,
        "peer": peer.seconds,
    }
