"""`python -m pilot_grpc` is `pilot`."""

import sys

from pilot_grpc.cli import main

sys.exit(main())
