"""`python -m pixelrefer_fast.doctor`: the report where the command itself is not installed."""

import sys

from pixelrefer_fast.doctor.probes import main

sys.exit(main())
