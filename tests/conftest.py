"""For all tests: a busy machine is no bug, and Triton's kernels are interpreted where there is no device."""

import os

import torch
from hypothesis import HealthCheck, settings

settings.register_profile("namm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("namm")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, by whomever
