"""What the driver takes of its machine."""

from __future__ import annotations

import os
import resource
import sys
import time


def machine_figures() -> dict[str, float]:
    """Figures that MLflow groups under ``system``: memory and CPU time of this process, and how busy the machine is."""
    kilobyte = 1 if sys.platform == "darwin" else 1024  # Linux counts in kilobytes
    return {
        "system/driver_peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte),
        "system/driver_cpu_seconds": time.process_time(),
        "system/load_per_core": os.getloadavg()[0] / (os.cpu_count() or 1),
    }
