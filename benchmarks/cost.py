"""Rates, efficiency and prices in, machines, hours and money for a corpus out.

Nothing is measured here: rates come from the other benchmarks. Prices are assumptions; look up your own.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from benchmarks.tokenising import H200_TOKENS_PER_S

ASSUMED_ON = "2026-11-25"
CPU_CORES = 16  # of a machine
CPU_USD_PER_HOUR = 0.70  # for all of them
GPU_USD_PER_HOUR = 4.00


class Machine(NamedTuple):
    """A kind of machine.

    Attributes:
        name: for people.
        tokens_per_s: that its model labels when it has always something to do.
        usd_per_hour: its price.
    """

    name: str
    tokens_per_s: float
    usd_per_hour: float


class Bill(NamedTuple):
    """What a corpus takes."""

    hours: float
    usd: float


def bill(machine: Machine, n_machines: int, *, n_tokens: float, efficiency: float) -> Bill:
    """Hours on so many machines together, and what they cost together.

    Args:
        machine: the kind.
        n_machines: all at work from beginning to end.
        n_tokens: of the corpus.
        efficiency: share of the time, in (0, 1], that the model computes.
    """
    hours = n_tokens / (n_machines * machine.tokens_per_s * efficiency) / 3600
    return Bill(hours, hours * n_machines * machine.usd_per_hour)


def main() -> None:
    """Print hours and cost for some numbers of each kind of machine."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=float, default=1e12, help="of the corpus (default: 1e12)")
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 16, 64, 256], help="default: 1 16 64 256")
    parser.add_argument("--efficiency", type=float, default=0.95, help="of the actors (default: 0.95)")
    parser.add_argument("--core-tokens-per-second", type=float, required=True, help="of a CPU core, measured")
    parser.add_argument("--cores", type=int, default=CPU_CORES, help=f"of a CPU machine (default: {CPU_CORES})")
    parser.add_argument("--gpu", default="one H200", help="its name (default: one H200)")
    parser.add_argument(
        "--gpu-tokens-per-second", type=float, default=H200_TOKENS_PER_S, help="of it (default: as measured on an H200)"
    )
    parser.add_argument("--cpu-price", type=float, default=CPU_USD_PER_HOUR, help="USD an hour of a CPU machine")
    parser.add_argument("--gpu-price", type=float, default=GPU_USD_PER_HOUR, help="USD an hour of a machine with a GPU")
    options = parser.parse_args()
    machines = [
        Machine(f"{options.cores} CPU cores", options.cores * options.core_tokens_per_second, options.cpu_price),
        Machine(options.gpu, options.gpu_tokens_per_second, options.gpu_price),
    ]
    print(f"{options.tokens:,.0f} tokens at efficiency {options.efficiency}")
    print(
        f"prices are assumptions of {ASSUMED_ON}: "
        + ", ".join(f"{m.name} {m.usd_per_hour:.2f} USD/h" for m in machines)
    )
    print(f"{'machine':<14}{'tokens/s':>12}{'machines':>10}{'hours':>12}{'days':>10}{'USD':>12}")
    for machine in machines:
        for n_machines in options.machines:
            hours, usd = bill(machine, n_machines, n_tokens=options.tokens, efficiency=options.efficiency)
            figures = f"{machine.tokens_per_s:12,.0f}{n_machines:10}{hours:12,.1f}{hours / 24:10,.1f}{usd:12,.0f}"
            print(f"{machine.name:<14}{figures}")


if __name__ == "__main__":
    main()
