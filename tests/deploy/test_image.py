from __future__ import annotations

import re
import sys

import pytest

from tests.deploy.manifests import DEPLOY, ROOT, load, pinned, project_version


@pytest.fixture
def dockerfile():
    return (DEPLOY / "image/Dockerfile").read_text(encoding="utf-8")


def test_the_base_is_ray_with_gpus_pinned_to_the_version_that_the_tests_ran_with(dockerfile):
    assert f"ARG RAY_IMAGE=rayproject/ray:{pinned()['ray']}-py311-gpu\n" in dockerfile
    assert re.findall(r"^FROM (.*)$", dockerfile, flags=re.MULTILINE) == ["${RAY_IMAGE}"]
    arguments = load("compose/docker-compose.yaml")["services"]["ray-head"]["build"]["args"]
    assert arguments["RAY_IMAGE"] == f"rayproject/ray:{pinned()['ray']}-py311-${{RAY_IMAGE_KIND:-cpu}}"


def test_the_images_python_is_the_one_that_the_pins_were_made_with(dockerfile):
    (minor,) = re.findall(r"ARG .*-py3(\d+)-gpu", dockerfile)
    assert (3, int(minor)) == sys.version_info[:2]


def test_every_library_is_installed_under_the_constraints(dockerfile):
    installs = re.findall(r"pip install.*", dockerfile)
    assert len(installs) == 3
    assert [line for line in installs if "--constraint constraints.txt" not in line and "--no-deps" not in line] == []


def test_the_image_ends_as_a_numeric_user_that_is_not_root(dockerfile):
    assert re.findall(r"^USER (.*)$", dockerfile, flags=re.MULTILINE)[-1] == "1000:100"


def test_a_cluster_of_the_image_asks_for_a_token_by_default(dockerfile):
    assert "RAY_AUTH_MODE=token" in dockerfile


def test_what_goes_into_the_image_is_what_the_package_is_made_of():
    lines = (DEPLOY / "image/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {line[1:] for line in rules if line.startswith("!")}
    assert {"orchestrator", "workers", "tasks", "deploy", "namm.py", "pyproject.toml", "constraints.txt"} <= let_in
    assert not {"tests", "runs", ".git", ".venv"} & let_in
    assert [name for name in let_in - {"README.md"} if not (ROOT / name).exists()] == []


def test_the_tag_that_the_page_builds_is_this_version(dockerfile):
    assert f"namm:{project_version()}" in dockerfile
