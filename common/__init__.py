"""What every package stands on: the error users see, typed settings and crash-safe files."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - it is older ones that are told.
    sys.stderr.write(f"error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}\n")
    sys.exit(2)
