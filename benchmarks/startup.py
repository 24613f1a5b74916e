"""CPU-seconds of what a user waits for before anything happens: `import chatlearn` and `chatlearn --help`.

    python benchmarks/startup.py [--runs 7]

Each run is a fresh interpreter; the reference is an interpreter that does nothing. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import chatlearn": ["-c", "import chatlearn"],
    "import chatlearn.config, .flow, .cli": ["-c", "import chatlearn.config, chatlearn.flow, chatlearn.cli"],
    "chatlearn --help": ["-m", "chatlearn", "--help"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Runs the table, all commands in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, arguments in COMMANDS.items():
            times[name].append(cpu_seconds(arguments))
    nothing = statistics.median(times["python -c pass"])
    print(f"{'':<38} {'CPU-s':>7} {'ratio':>7}   median of {runs}")
    for name, values in times.items():
        print(f"{name:<38} {statistics.median(values):>7.3f} {statistics.median(values) / nothing:>7.1f}")


if __name__ == "__main__":
    main()
