from __future__ import annotations

from copy import deepcopy

import pytest
import yaml

from orchestrator.arguments import parse
from orchestrator.config import load_config
from tests.deploy.manifests import DEPLOY, IMAGE, complaints, driver_arguments, load, pinned, project_version

KUBERAY, KUBERNETES = "kuberay-1.6.2.json", "kubernetes-1.36.json"
CLAIM = "io.k8s.api.core.v1.PersistentVolumeClaim"
SPOT_LABELS = {
    "cloud.google.com/gke-spot",
    "eks.amazonaws.com/capacityType",
    "karpenter.sh/capacity-type",
    "kubernetes.azure.com/scalesetpriority",
}


@pytest.fixture
def job():
    return load("kuberay/job.yaml")


@pytest.fixture
def cluster():
    return load("kuberay/cluster.yaml")


@pytest.fixture
def head(cluster):
    return cluster["spec"]["headGroupSpec"]


@pytest.fixture
def gpu_workers(cluster):
    (group,) = cluster["spec"]["workerGroupSpecs"]
    return group


def test_the_cluster_fits_the_schema_of_its_resource(cluster):
    assert complaints(cluster, KUBERAY, "RayCluster") == []


def test_the_job_fits_the_schema_of_its_resource(job):
    assert complaints(job, KUBERAY, "RayJob") == []


def test_the_claim_fits_the_schema_of_kubernetes():
    assert complaints(load("kuberay/storage.yaml"), KUBERNETES, CLAIM) == []


def set_in(document, path, value):
    """A copy with one value replaced; list positions are numbers."""
    changed = deepcopy(document)
    *parents, last = path
    place = changed
    for key in parents:
        place = place[key]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "ray.io/v1alpha1"),
        (("spec", "backoffLimit"), "20"),
        (("spec", "retries"), 3),
        (("spec", "submissionMode"), "JobMode"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        (("spec", "rayClusterSpec", "authOptions", "token"), "abc"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "toleration"), []),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "image"), 7),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_schema_finds_a_planted_mistake(job, path, value):
    assert complaints(set_in(job, path, value), KUBERAY, "RayJob") != []


def test_job_and_cluster_start_the_same_machines(job, cluster):
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_ray_is_of_the_version_that_the_image_has(cluster):
    assert cluster["spec"]["rayVersion"] == pinned()["ray"]


def test_every_container_runs_the_image_of_this_version(head, gpu_workers):
    for group in (head, gpu_workers):
        assert [one["image"] for one in group["template"]["spec"]["containers"]] == [f"{IMAGE}:{project_version()}"]


def test_the_head_offers_nothing_that_a_worker_could_take(head):
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert "resources" not in head, "KubeRay refuses resources beside num-cpus"


def test_the_head_never_lands_on_a_spot_machine_and_workers_land_nowhere_else(head, gpu_workers):
    def terms(group):
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    (never,) = terms(head)  # terms are alternatives, the expressions of one are all required
    assert {one["key"] for one in never["matchExpressions"]} == SPOT_LABELS
    assert {one["operator"] for one in never["matchExpressions"]} == {"NotIn"}
    either = [one for term in terms(gpu_workers) for one in term["matchExpressions"]]
    assert len(terms(gpu_workers)) == len(either) == len(SPOT_LABELS)
    assert {one["key"] for one in either} == SPOT_LABELS
    assert {one["operator"] for one in either} == {"In"}


def test_workers_tolerate_the_taints_of_gpu_and_spot_machines(gpu_workers):
    tolerated = {one["key"] for one in gpu_workers["template"]["spec"]["tolerations"]}
    assert tolerated >= {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}


def test_a_pod_holds_one_of_the_presets_workers(gpu_workers):
    settings = load_config("llama3-8b").cluster
    limits = gpu_workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["cpu"]) >= settings.cpus_per_worker
    assert int(limits["nvidia.com/gpu"]) >= settings.accelerators_per_worker
    assert gpu_workers["minReplicas"] == 0
    assert gpu_workers["maxReplicas"] >= 1


def test_the_second_autoscaler_is_on_and_pods_fit_its_condition(cluster, head, gpu_workers):
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"
    for group in (head, gpu_workers):
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"


def test_the_token_comes_from_a_secret_that_outlives_every_cluster_of_the_job(cluster):
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "namm-ray-token"}


def test_driver_and_workers_may_read_a_gated_model(head, gpu_workers):
    """The driver measures prompts with the model's own tokenizer, before any worker is there."""
    for group in (head, gpu_workers):
        (container,) = group["template"]["spec"]["containers"]
        (token,) = [entry for entry in container.get("env", []) if entry["name"] == "HF_TOKEN"]
        assert token["valueFrom"] == {"secretKeyRef": {"name": "namm-hub-token", "key": "token", "optional": True}}


def test_no_container_is_root_or_may_become_it(head, gpu_workers):
    for group in (head, gpu_workers):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_run_folder_is_on_the_claim_that_two_heads_may_mount(job, head):
    claim = load("kuberay/storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (volume,) = head["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = head["template"]["spec"]["containers"][0]["volumeMounts"]
    arguments = driver_arguments(job["spec"]["entrypoint"])
    assert arguments[arguments.index("--run") + 1].startswith(f"{mount['mountPath']}/")


def test_the_tasks_of_the_job_are_staged_where_the_image_and_all_workers_look(head, gpu_workers):
    (stage,) = head["template"]["spec"]["initContainers"]
    arguments = parse(stage["command"][1:])
    assert (stage["command"][0], arguments.action, arguments.suite) == ("namm", "fetch", "longbench")
    assert f"NAMM_TASKS={arguments.to}\n" in (DEPLOY / "image/Dockerfile").read_text(encoding="utf-8")
    for mounts in (stage["volumeMounts"], gpu_workers["template"]["spec"]["containers"][0]["volumeMounts"]):
        assert any(str(arguments.to).startswith(f"{mount['mountPath']}/") for mount in mounts)


def test_the_job_is_tried_again_and_takes_its_cluster_down_in_the_end(job):
    spec = job["spec"]
    assert spec["backoffLimit"] >= 3
    assert spec["shutdownAfterJobFinishes"] is True
    assert "activeDeadlineSeconds" not in spec, "a run of days must not be ended by a clock"
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & set(spec), (
        "with resources of its own the driver could land on a spot worker"
    )


def test_the_job_runs_the_images_code_under_the_shipped_environment_variables(job):
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert environment == {"env_vars": load("runtime-env.yaml")["env_vars"]}
