"""An embedded PostgreSQL that is stopped and started by its parent, a line on stdin at a time.

A process of its own does that: one that speaks gRPC must not fork, and to become another user,
as PostgreSQL wants under root, Python forks.
"""

import sys
from pathlib import Path

from pilot_grpc import embedded

# What was committed is in the log when PostgreSQL dies; only a power cut would lose it.
OPTIONS = {"fsync": "off", "full_page_writes": "off"}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    home = Path(sys.argv[1])
    cluster = embedded._Cluster(home.resolve(), embedded.SERVER_OPTIONS | OPTIONS)
    with embedded.running(home, options=OPTIONS) as url:
        say(url)
        for line in sys.stdin:
            if line.strip() == "start":
                cluster.start()
            else:
                cluster._run("pg_ctl", "stop", "--wait", "--silent", f"--mode={line.strip()}")
            say("done")


if __name__ == "__main__":
    main()
