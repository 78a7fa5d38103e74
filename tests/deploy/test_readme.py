from __future__ import annotations

import re

import pytest

from orchestrator.arguments import parse
from orchestrator.config import load_config
from tests.deploy.manifests import (
    DATA,
    DEPLOY,
    README,
    ROOT,
    driver_arguments,
    load,
    project_version,
    readme_commands,
    text_files,
)

PLATFORMS = ("A cluster on a laptop", "Docker Compose", "AWS", "Google Cloud", "Kubernetes")


def evolve_commands() -> list[str]:
    """Every command line, on the page or in a manifest, that starts a driver."""
    on_the_page = [line for line in readme_commands() if "python -m orchestrator" in line]
    return [*on_the_page, load("kuberay/job.yaml")["spec"]["entrypoint"]]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_goes_from_nothing_to_a_job_in_numbered_steps(platform):
    text = README.read_text(encoding="utf-8").split(f"\n## {platform}\n")[1].split("\n## ")[0]
    steps = [int(number) for number in re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 4


@pytest.mark.parametrize("command", evolve_commands(), ids=lambda command: command[-60:])
def test_every_command_that_starts_a_driver_is_understood_and_valid(command):
    arguments = parse(driver_arguments(command))
    assert arguments.command == "evolve"
    preset, *overrides = arguments.words
    config = load_config(preset, overrides)
    assert (DEPLOY / "presets" / f"{preset}.yaml").is_file()
    assert config.cluster.address == "auto", "inside a job the driver joins the cluster that it is on"
    assert str(arguments.run_folder).startswith(("/runs/", "$PWD/")), "on storage that outlives the machines"


@pytest.mark.parametrize("platform", ["AWS", "Google Cloud", "Kubernetes"])
def test_the_clouds_run_the_command_of_the_kubernetes_job(platform):
    """But for ``--takeover``: only a retry by itself may be sure that the former driver is dead."""
    commands = {tuple(driver_arguments(line)) for line in readme_commands(platform) if "python -m orchestrator" in line}
    retried = driver_arguments(load("kuberay/job.yaml")["spec"]["entrypoint"])
    assert retried[-1] == "--takeover"
    assert commands == {tuple(retried[:-1])}


def test_commands_of_ours_are_commands_that_there_are():
    from orchestrator.cli import COMMANDS

    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"\bnamm (?!-)([a-z]+) (?=[A-Z/])", text))
    assert named
    assert named <= set(COMMANDS)


def test_every_job_goes_through_the_loopback_address():
    submitted = [line for line in readme_commands() if "ray job " in line]
    assert len(submitted) >= 5
    assert [line for line in submitted if "--address http://127.0.0.1:8265" not in line] == []


def test_every_file_that_the_page_names_exists():
    text = README.read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert links
    assert [link for link in links if not (DEPLOY / link).exists()] == []
    paths = set(re.findall(r"\bdeploy/[\w./-]*\w", " ".join(readme_commands())))
    assert [path for path in paths if not (ROOT / path).exists() and path != "deploy/compose/.env"] == []


def test_links_within_the_page_lead_to_headings():
    text = README.read_text(encoding="utf-8")
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_every_placeholder_is_filled_in_by_a_command_of_the_page():
    replaced = " ".join(line for line in readme_commands() if "sed -e" in line)
    kuberay = (f"kuberay/{kind}.yaml" for kind in ("cluster", "job", "storage"))
    for name in ("ray-up/aws.yaml", "ray-up/gcp.yaml", *kuberay):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        for placeholder in {*re.findall(r"[\w-]+-REPLACE_ME", text), *re.findall(r"registry\.example\.com/\S+", text)}:
            assert f"/{placeholder}/" in replaced or f"#{placeholder}#" in replaced, f"{name}: {placeholder}"


def test_every_alert_is_explained():
    text = README.read_text(encoding="utf-8")
    alerts = [rule["alert"] for group in load("monitoring/alerts.yaml")["groups"] for rule in group["rules"]]
    assert [name for name in alerts if f"`{name}`" not in text] == []


def test_kuberay_is_installed_in_the_version_whose_schema_the_tests_carry():
    (schema,) = DATA.glob("kuberay-*.json")
    version = schema.stem.removeprefix("kuberay-")
    assert any(f"ref=v{version}" in line for line in readme_commands("Kubernetes"))


def test_the_image_is_built_with_the_tag_of_this_version():
    build = f"docker build --file deploy/image/Dockerfile --tag namm:{project_version()} ."
    assert build in readme_commands("The image")


def test_no_file_here_knows_this_machine_or_reaches_out_to_a_host_of_its_own():
    here = {"127.0.0.1", "mlflow", "prometheus", "object-storage", "your-server", "…"}
    for path in text_files():
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text, path
        assert set(re.findall(r"https?://([^/:\s`'\"]+)", text)) <= here, path


def test_no_file_here_holds_something_that_looks_like_a_secret():
    secret = re.compile(r"hf_[A-Za-z0-9]{8}|AKIA[0-9A-Z]{8}|PRIVATE KEY|(?<![\w-])[0-9a-f]{32,}(?!\w)|minioadmin")
    found = [
        f"{path}: {secret.findall(text)}" for path in text_files() if secret.search(text := path.read_text("utf-8"))
    ]
    assert found == []
