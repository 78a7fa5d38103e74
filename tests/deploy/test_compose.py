from __future__ import annotations

import re

import pytest

from orchestrator.config import load_config
from tests.deploy.manifests import DEPLOY, complaints, load, pinned, project_version

SCHEMA = "compose-spec.json"
COMPOSE = "compose/docker-compose.yaml"
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET")


@pytest.fixture
def services():
    return load(COMPOSE)["services"]


@pytest.mark.parametrize("name", [COMPOSE, "compose/gpu.yaml"])
def test_the_file_fits_the_compose_specification(name):
    assert complaints(load(name), SCHEMA) == []


@pytest.mark.parametrize("planted", [{"port": ["1"]}, {"ports": 5000}, {"environment": 1}, {"restart": True}])
def test_the_schema_finds_a_planted_mistake(planted):
    compose = load(COMPOSE)
    compose["services"]["mlflow"] |= planted
    assert complaints(compose, SCHEMA) != []


def test_there_is_everything_that_a_run_needs(services):
    assert set(services) == {
        "ray-head", "ray-worker", "mlflow", "postgres", "object-storage", "prometheus", "grafana",
    }  # fmt: skip


def test_every_open_port_is_open_on_this_machine_only(services):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) >= 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert not any(service.get("network_mode") for service in services.values())


def test_every_secret_comes_from_the_env_file_and_nothing_starts_without_it(services):
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key) and key not in ("HF_TOKEN",):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), f"{name}: {key}"
            assert not re.search(r"://[^/@$]+:[^/@$]+@", str(value)), f"{name}: {key} holds a password"


def test_the_example_names_every_variable_and_holds_no_value_of_a_secret():
    text = (DEPLOY / COMPOSE).read_text(encoding="utf-8")
    example = (DEPLOY / "compose/.env.example").read_text(encoding="utf-8")
    values = dict(line.split("=", 1) for line in example.splitlines() if "=" in line and not line.startswith("#"))
    assert set(re.findall(r"\$\{([A-Z_]+)", text)) == set(values)
    assert {key: value for key, value in values.items() if SECRET.search(key) and value} == {}


def test_the_filled_in_env_file_stays_out_of_git_and_of_the_image():
    assert ".env" in (DEPLOY / "compose/.gitignore").read_text(encoding="utf-8").split()
    assert "deploy/compose/.env" in (DEPLOY / "image/Dockerfile.dockerignore").read_text(encoding="utf-8").split()


def test_every_image_is_pinned_to_a_version(services):
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']}"


def test_our_images_are_of_the_versions_that_the_tests_ran_with(services):
    assert services["ray-head"]["image"] == services["ray-worker"]["image"] == f"namm:{project_version()}"
    assert services["mlflow"]["image"] == f"namm-mlflow:{pinned()['mlflow']}"
    dockerfile = (DEPLOY / "compose/mlflow/Dockerfile").read_text(encoding="utf-8")
    assert f"FROM ghcr.io/mlflow/mlflow:v{pinned()['mlflow']}\n" in dockerfile


def test_files_that_are_mounted_or_built_exist(services):
    folder = (DEPLOY / COMPOSE).parent
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in load(COMPOSE)["volumes"] or (folder / source).is_file(), volume
        build = service.get("build")
        if isinstance(build, str):
            assert (folder / build / "Dockerfile").is_file()
        elif build:
            assert (folder / build["context"] / build["dockerfile"]).is_file()


def test_the_head_holds_no_worker_and_asks_for_the_token(services):
    head = services["ray-head"]
    assert "--num-cpus=0 --num-gpus=0" in head["command"]
    for name in ("ray-head", "ray-worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" in services[name]["environment"]


def test_driver_and_workers_may_read_a_gated_model(services):
    for name in ("ray-head", "ray-worker"):
        assert services[name]["environment"]["HF_TOKEN"] == "${HF_TOKEN:-}"


def test_one_worker_container_is_enough_for_the_small_preset(services):
    cluster = load_config("small").cluster
    (cpus,) = re.findall(r"--num-cpus=(\d+)", services["ray-worker"]["command"])
    assert int(cpus) >= cluster.cpus_per_worker * 2


def test_mlflow_keeps_runs_in_postgresql_and_files_in_object_storage(services):
    environment = services["mlflow"]["environment"]
    assert environment["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg2://")
    assert "@postgres:5432/" in environment["MLFLOW_BACKEND_STORE_URI"]
    bucket = environment["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://")
    assert f"-bucket={bucket}" in services["object-storage"]["command"]
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "http://object-storage:8333"
    assert "mlflow:5000" in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


def test_metrics_are_scraped_where_ray_shows_them(services):
    (ray, _) = load("monitoring/prometheus.yaml")["scrape_configs"]
    (target,) = ray["dns_sd_configs"]
    assert target["names"] == ["ray-head", "ray-worker"]
    for name in target["names"]:
        assert f"--metrics-export-port={target['port']}" in services[name]["command"]


def test_grafana_is_given_the_dashboard_and_the_data_source_that_it_names():
    (source,) = load("compose/grafana/datasource.yaml")["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = load("compose/grafana/dashboards.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in load(COMPOSE)["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/grafana-dashboard.json" in mounted
