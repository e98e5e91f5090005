"""``make bench``: measure this provider beside its alternatives, and write ``results.md``.

Usage: ``python bench/all.py [--quick] [SUBJECT ...]``; without a subject, all of them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from harness import Bench
from report import RESULTS, save

SUBJECTS = ("members", "limits", "profiles", "mirror", "uuids")


def main() -> None:
    """Measure the subjects that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "subjects", nargs="*", metavar="subject", default=SUBJECTS, help="of " + ", ".join(SUBJECTS)
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rows, once, nothing written: to try the scripts"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="talon-cdp-bench-") as folder:
        bench = Bench(Path(folder), quick=options.quick)
        for subject in options.subjects:
            print(f"{subject} ...", file=sys.stderr)
            section = importlib.import_module(subject).run(bench)
            print(f"\n{section}", flush=True)
            if not options.quick:
                save(section)
    if not options.quick:
        print(f"Written to {RESULTS}.")


if __name__ == "__main__":
    main()
