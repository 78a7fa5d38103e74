from __future__ import annotations

from copy import deepcopy

import pytest

from orchestrator.config import load_config
from tests.deploy.manifests import IMAGE, complaints_of_ray_up, load, project_version

CLOUDS = ("aws", "gcp")
PRESET = "llama3-8b"


@pytest.fixture(params=CLOUDS)
def cluster(request):
    return load(f"ray-up/{request.param}.yaml")


def test_the_manifest_fits_the_schema_that_ships_with_ray(cluster):
    assert complaints_of_ray_up(cluster) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_workers", "eight"), ("num_workers", 8), ("available_node_types", {"gpu": {"resources": {}}})],
)
def test_the_schema_finds_a_planted_mistake(cluster, key, value):
    assert complaints_of_ray_up({**cluster, key: value}) != []


@pytest.mark.slow
def test_ray_itself_accepts_the_manifest_with_its_own_defaults_filled_in(cluster):
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    filled = fillout_defaults(deepcopy(cluster))
    validate_config(filled)
    assert filled["docker"] == cluster["docker"]
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert filled[commands] == [], f"Ray's default {commands} install another Ray over the image's"


def test_the_head_offers_nothing_that_a_worker_could_take(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    start = cluster["head_start_ray_commands"][-1]
    assert "--num-cpus=0 --num-gpus=0" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


def test_the_head_is_on_demand_and_every_worker_on_spot(cluster):
    is_spot = {
        name: "spot" in str(node["node_config"]).lower() for name, node in cluster["available_node_types"].items()
    }
    assert is_spot.pop(cluster["head_node_type"]) is False
    assert is_spot == dict.fromkeys(is_spot, True)


def test_there_is_one_kind_of_gpu_because_scores_repeat_on_one_kind_only(cluster):
    kinds = {name for name, node in cluster["available_node_types"].items() if node["resources"].get("GPU", 0) > 0}
    assert len(kinds) == 1


def test_workers_come_from_none_and_hold_the_presets_workers(cluster):
    settings = load_config(PRESET).cluster
    (name,) = set(cluster["available_node_types"]) - {cluster["head_node_type"]}
    node = cluster["available_node_types"][name]
    assert node["min_workers"] == 0
    assert node["max_workers"] == cluster["max_workers"] >= 1
    assert node["resources"]["CPU"] >= settings.cpus_per_worker
    assert node["resources"]["GPU"] >= settings.accelerators_per_worker


def test_the_run_folder_is_on_shared_storage_that_is_mounted_before_the_container_starts(cluster):
    (mount,) = [command for command in cluster["initialization_commands"] if "mount -t nfs" in command]
    assert mount.endswith((":/ /mnt/runs", ":/runs /mnt/runs"))
    assert "--volume /mnt/runs:/runs" in cluster["docker"]["run_options"]


def test_every_node_asks_for_the_token_and_gets_it_as_a_file(cluster):
    options = cluster["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    (path,) = [option.partition("=")[2] for option in options if "RAY_AUTH_TOKEN_PATH" in option]
    (folder,) = cluster["file_mounts"]
    assert path.startswith(f"{folder}/")
    assert not any("RAY_AUTH_TOKEN=" in option for option in options)


def test_the_dashboard_is_reached_through_ssh_only(cluster):
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_the_image_is_the_one_of_this_version(cluster):
    assert cluster["docker"]["image"] == f"{IMAGE}:{project_version()}"
