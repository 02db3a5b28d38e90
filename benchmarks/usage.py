"""Run a Python command and print what it took: seconds, seconds of CPU time, peak memory in bytes.

    python -m benchmarks.usage -m dataset.build_arc_dataset ...

The peak is that of the command's largest process. It includes the memory of the process that
started it, before the new program took its place: so the starter is small and imports none of ours.
"""

import json
import resource
import subprocess
import sys
import time

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024

if __name__ == "__main__":
    start = time.perf_counter()
    exit_code = subprocess.call([sys.executable, *sys.argv[1:]], stdout=sys.stderr)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    sys.stdout.write(json.dumps([seconds, cpu_seconds, usage.ru_maxrss * MAXRSS_UNIT]))
    sys.exit(exit_code)
