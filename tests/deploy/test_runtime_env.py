from __future__ import annotations

import pytest

from orchestrator.config import load_config
from tests.deploy.manifests import load


def test_nothing_large_or_private_is_uploaded_with_the_working_tree():
    environment = load("runtime-env.yaml")
    assert environment["working_dir"] == "."
    assert set(environment["excludes"]) >= {".env", ".git", ".venv", "runs", "mlruns", "*.parquet", "mlflow.db*"}


def test_variables_are_texts_and_none_is_a_secret():
    variables = load("runtime-env.yaml")["env_vars"]
    assert variables["OMP_NUM_THREADS"] == "1"
    assert all(isinstance(value, str) for value in variables.values())
    assert not any(word in name for name in variables for word in ("TOKEN", "PASSWORD", "SECRET", "KEY"))


def test_a_stopped_driver_has_the_time_to_drain():
    drain = load_config("small").cluster.drain_seconds
    assert int(load("runtime-env.yaml")["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > drain


@pytest.mark.slow
def test_ray_accepts_the_runtime_environment():
    from ray.runtime_env import RuntimeEnv

    shipped = load("runtime-env.yaml")
    accepted = RuntimeEnv(**shipped)
    assert accepted.to_dict() == shipped
