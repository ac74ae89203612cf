"""`python -m pixelrefer_fast.cli`, where the command itself is not on the path."""

import sys

from pixelrefer_fast.cli.entry import main

sys.exit(main())
