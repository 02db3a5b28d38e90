"""Imported in place of the package `common` where a module of this folder is run by its path.

Python then looks for modules beside the script and not in the repository's folder, so that none of
the project's packages is found: all that can be done is to say how the module is run.
"""

import sys
from pathlib import Path

module = f"dataset.{Path(sys.argv[0]).stem}"
sys.stderr.write(f"error: run it in the repository's folder, as python -m {module}\n")
sys.exit(2)
