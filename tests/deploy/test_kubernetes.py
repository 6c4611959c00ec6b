"""Manifests by the schemas of their kinds, by Ray Serve's own, and by the habits of the house."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs.command_line import parse
from pipelines.serve_spec import ServeSpec
from tests.deploy.node_types import NODE_TYPES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
FILES = sorted(FOLDER.glob("*.yaml"))
KUBERNETES = "1.37.0"
RAY_KINDS = {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob", "raycronjob.yaml": "RayCronJob"}
RAY_KINDS["rayservice.yaml"] = "RayService"


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def only(name: str) -> dict[str, Any]:
    (document,) = documents(FOLDER / name)
    return document


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from mappings(child)


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod's spec."""
    return [mapping for mapping in mappings(document) if "containers" in mapping]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_fits_the_schema_of_its_kind(file: Path) -> None:
    for document in documents(file):
        kind = document["kind"]
        if kind.startswith("Ray"):
            jsonschema.validate(document, json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8")))
            assert document["apiVersion"] == "ray.io/v1"
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        for spec in pods(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_every_kind_is_there() -> None:
    assert {name: only(name)["kind"] for name in RAY_KINDS} == RAY_KINDS
    assert only("cronjob.yaml")["kind"] == "CronJob"


def test_a_slip_is_seen() -> None:
    job = only("rayjob.yaml")
    job["spec"]["shutdownAfterJobFinish"] = job["spec"].pop("shutdownAfterJobFinishes")
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        jsonschema.validate(job, json.loads((SCHEMAS / "RayJob.json").read_text(encoding="utf-8")))
    (pod, *_) = pods(only("rayjob.yaml"))
    pod["containers"][0]["resource"] = pod["containers"][0].pop("resources")
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "spec": pod}, KUBERNETES, strict=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_pods_are_bounded_unprivileged_and_pinned(file: Path) -> None:
    image = f"registry.example.com/convbert-pipelines:{importlib.metadata.version('convbert-pipelines')}-ray"
    for spec in (spec for document in documents(file) for spec in pods(document)):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["image"] == image + importlib.metadata.version("ray")
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_secrets_are_named_and_never_written(file: Path) -> None:
    for document in documents(file):
        assert document["kind"] != "Secret"
        for variable in (one for mapping in mappings(document) for one in mapping.get("env", [])):
            if re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]):
                assert set(variable) == {"name", "valueFrom"}
                assert set(variable["valueFrom"]) == {"secretKeyRef"}


@pytest.mark.parametrize("name", RAY_KINDS)
def test_clusters_are_those_of_cluster_yaml(name: str) -> None:
    (cluster,) = (mapping for mapping in mappings(only(name)) if "headGroupSpec" in mapping)
    assert cluster["rayVersion"] == importlib.metadata.version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    assert {"num-cpus": "0", "num-gpus": "0"}.items() <= cluster["headGroupSpec"]["rayStartParams"].items()
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    market = "ray.io/market-type"  # Kubernetes chooses it: a group may hold both
    gpu_labels = {key: value for key, value in NODE_TYPES["gpu-spot"]["labels"].items() if key != market}
    assert groups["gpu"]["labels"] == gpu_labels
    assert groups["gpu"]["rayStartParams"]["num-cpus"] == str(NODE_TYPES["gpu-spot"]["resources"]["CPU"])
    if name != "rayservice.yaml":  # which has replicas that stay, and no work for CPUs
        assert groups["gpu"]["maxReplicas"] == NODE_TYPES["gpu-spot"]["max_workers"]
        assert groups["cpu"]["maxReplicas"] == NODE_TYPES["cpu"]["max_workers"]
        assert [group["minReplicas"] for group in groups.values()] == [0, 0]
    for group in groups.values():
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group["groupName"] == "gpu")


def test_a_night_and_a_single_run_are_the_same_job() -> None:
    assert only("raycronjob.yaml")["spec"]["jobTemplate"] == only("rayjob.yaml")["spec"]
    assert only("raycluster.yaml")["spec"] == only("rayjob.yaml")["spec"]["rayClusterSpec"]


def test_the_cluster_goes_with_its_job() -> None:
    spec = only("rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"]
    tries = 1 + spec["backoffLimit"]
    assert tries * spec["activeDeadlineSeconds"] < 24 * 3600  # over before the next night


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycronjob.yaml"])
def test_a_submitter_that_is_lost_is_replaced(name: str) -> None:
    """The next one follows the job that runs; without it KubeRay would end the cluster and begin anew."""
    (job,) = (mapping for mapping in mappings(only(name)) if "entrypoint" in mapping)
    kuberays_own = 2
    assert job.get("submitterConfig", {}).get("backoffLimit", kuberays_own) > 0


@pytest.mark.parametrize("name", [*RAY_KINDS, "cronjob.yaml"])
def test_machines_are_not_cleared_under_heads_and_submitters(name: str) -> None:
    """What is lost with a worker is done again; what is lost with these is the night, or word of it."""
    templates = [mapping for mapping in mappings(only(name)) if "containers" in mapping.get("spec", {})]
    kept = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert templates
    for template in templates:
        is_worker = template["spec"]["containers"][0]["name"] == "ray-worker"
        assert template.get("metadata") == (None if is_worker else {"annotations": kept})


def test_the_job_understands_its_settings(tmp_path: Path) -> None:
    (settings,) = (document for document in documents(FOLDER / "common.yaml") if document["kind"] == "ConfigMap")
    (tmp_path / "job.yaml").write_text(settings["data"]["job.yaml"], encoding="utf-8")
    command = only("rayjob.yaml")["spec"]["entrypoint"].split()
    assert command[:4] == ["python", "-m", "jobs.classify_corpus", "--config"]
    spec = parse("test", task="text-classification", arguments=["--config", str(tmp_path / "job.yaml")])
    assert spec.device == "cuda"
    assert spec.max_actors == NODE_TYPES["gpu-spot"]["max_workers"]


def test_pods_have_a_role_of_their_own() -> None:
    """That of a machine trusts EC2 alone, and pods come with a token of their cluster."""
    (account,) = (document for document in documents(FOLDER / "common.yaml") if document["kind"] == "ServiceAccount")
    role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].rsplit("/", 1)[1]
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    assert f"The role of `common.yaml`, `{role}`," in page
    assert f":{account['metadata']['name']}`" in page
    assert role not in (ROOT / "cluster.yaml").read_text(encoding="utf-8")


def test_the_pages_names_are_those_of_the_files() -> None:
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    cluster, service = (only(name)["metadata"]["name"] for name in ("raycluster.yaml", "rayservice.yaml"))
    assert f"kubectl port-forward svc/{cluster}-head-svc 8265" in page
    assert f"kubectl get secret {cluster} -o jsonpath='{{.data.auth_token}}'" in page
    assert f"--from=cronjob/{only('cronjob.yaml')['metadata']['name']} " in page
    port = yaml.safe_load(only("rayservice.yaml")["spec"]["serveConfigV2"])["http_options"]["port"]
    assert f"`http://{service}-serve-svc:{port}`" in page


@pytest.mark.parametrize("name", RAY_KINDS)
def test_the_page_tells_how_much_disk_pods_want(name: str) -> None:
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    told = re.search(r"`ephemeral-storage`: (\d+) GiB a head, (\d+) a worker", page)
    assert told is not None
    wanted = dict(zip(("ray-head", "ray-worker"), told.groups(), strict=True))
    containers = [one for pod in pods(only(name)) for one in pod["containers"] if one["name"] in wanted]
    assert {one["name"] for one in containers} == set(wanted)
    for container in containers:
        assert container["resources"]["requests"]["ephemeral-storage"] == f"{wanted[container['name']]}Gi"


@pytest.mark.parametrize("name", RAY_KINDS)
def test_the_pages_monitor_finds_a_port_of_every_pod(name: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/monitoring.md").read_text(encoding="utf-8"), re.DOTALL)
    (monitor,) = (block for block in map(yaml.safe_load, blocks) if block.get("kind") == "PodMonitor")
    assert monitor["metadata"]["labels"]["release"]  # or kube-prometheus-stack passes over it
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    containers = [one for pod in pods(only(name)) for one in pod["containers"] if one["name"] != "submitter"]
    groups = [mapping for mapping in mappings(only(name)) if "rayStartParams" in mapping]
    assert len(containers) == len(groups) > 1
    for container in containers:
        assert endpoint["port"] in [port["name"] for port in container["ports"]]


def test_a_cron_job_submits_once_a_night_to_the_standing_cluster() -> None:
    spec = only("cronjob.yaml")["spec"]
    assert (spec["concurrencyPolicy"], spec["jobTemplate"]["spec"]["backoffLimit"]) == ("Forbid", 0)
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    cluster = only("raycluster.yaml")["metadata"]["name"]
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["RAY_ADDRESS"]["value"] == f"http://{cluster}-head-svc:8265"
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}
    *_, submit = container["command"]
    submission, job = submit.split(" -- ")
    assert submission == 'exec ray job submit --submission-id "corpus-$(date -u +%F)"'
    assert spec["timeZone"] == "Etc/UTC"  # or a run by hand would take the next night's id
    assert environment["PYTHONUNBUFFERED"]["value"] == "1"
    deadline = re.fullmatch(
        r"timeout --foreground --kill-after=1m (\d+)h python -m jobs\.classify_corpus --config /etc/convbert/job\.yaml",
        job,
    )
    assert deadline is not None  # of the job itself: the pod's, below, ends the waiting alone
    assert int(deadline[1]) * 3600 < spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_serve_and_the_service_understand_the_settings() -> None:
    from ray.serve.schema import ServeDeploySchema

    from pipelines.serving import _replica_cpus

    config = ServeDeploySchema.model_validate(yaml.safe_load(only("rayservice.yaml")["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "pipelines.serving:build"
    spec = ServeSpec.of(application.args)
    assert spec.device == "cuda"
    (groups,) = (
        mapping["workerGroupSpecs"] for mapping in mappings(only("rayservice.yaml")) if "workerGroupSpecs" in mapping
    )
    assert spec.max_replicas == groups[0]["maxReplicas"]
    assert _replica_cpus(spec, spec.device) == 0  # and so finds room on pods that say they have none


def test_serve_and_the_service_understand_the_page() -> None:
    from ray.serve.schema import ServeDeploySchema

    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/serving.md").read_text(encoding="utf-8"), re.DOTALL)
    applications = [
        one for block in blocks for one in ServeDeploySchema.model_validate(yaml.safe_load(block)).applications
    ]
    assert [set(ServeSpec.of(one.args).urls) for one in applications] == [{"spam", "vectors"}]
