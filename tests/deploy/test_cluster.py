"""cluster.yaml by Ray's own validation, its AWS launcher against a simulated AWS, and its autoscaler's own choice."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.node_types import hardware, nodes_for

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture
def config() -> dict[str, Any]:
    """As Ray prepares it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load(TEXT))


def test_ray_takes_it(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(config)
    with pytest.raises(Exception, match="idle_timeout_minutes"):
        validate_config({**config, "idle_timeout_minutes": "soon"})


def test_the_head_takes_no_work_and_no_worker_waits_for_any(config: dict[str, Any]) -> None:
    types = copy.deepcopy(config["available_node_types"])
    assert types.pop(config["head_node_type"])["resources"] == {"CPU": 0, "GPU": 0}
    assert {name: node["min_workers"] for name, node in types.items()} == dict.fromkeys(types, 0)
    assert config["max_workers"] >= sum(node["max_workers"] for node in types.values())
    assert config["idle_timeout_minutes"] <= 10


def test_market_and_labels_agree(config: dict[str, Any]) -> None:
    for name, node in config["available_node_types"].items():
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        assert node.get("labels", {}).get("ray.io/market-type", "on-demand") == market, name
        if node["resources"].get("GPU"):
            assert node["resources"]["CPU"] == 0  # so that no other work starts such a machine
            assert node["labels"]["ray.io/accelerator-type"]


@pytest.mark.parametrize("name", ["head", "gpu-spot", "gpu-on-demand", "cpu"])
def test_gpus_are_seen_in_the_containers_of_gpu_workers(
    config: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray's launcher runs on a machine of each type; only those with a GPU have nvidia-smi."""
    from ray.autoscaler._private import command_runner
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    has_gpu = bool(config["available_node_types"][name]["resources"].get("GPU"))
    told: list[str] = []

    def machine(runner: object, command: str, **options: object) -> bytes:
        told.append(command)
        if command == "nvidia-smi" and not has_gpu:
            raise RuntimeError("no GPU")
        answers = {
            "info -f": "nvidia-container-runtime",
            ".Config.Env": '["HOME=/home/ray"]',
            "meminfo": "MemAvailable: 9",
        }
        return next((answer for part, answer in answers.items() if part in command), "").encode()

    monkeypatch.setattr(command_runner.SSHCommandRunner, "run", machine)
    names = ("log_prefix", "node_id", "provider", "process_runner", "use_internal_ip")
    runner = command_runner.DockerCommandRunner(
        AutoscalingConfig(config, skip_content_hash=True).get_docker_config(name),
        auth_config=config["auth"],
        cluster_name=config["cluster_name"],
        **dict.fromkeys(names),
    )
    runner.run_init(as_head=name == "head", file_mounts={}, sync_run_yet=True)
    (start,) = (command for command in told if command.startswith("docker run "))
    assert "--env RAY_AUTH_MODE=token" in start
    assert ("--env NVIDIA_VISIBLE_DEVICES=all" in start) == ("--runtime=nvidia" in start) == has_gpu


def test_versions_are_pinned_to_what_is_tested(config: dict[str, Any]) -> None:
    ours = importlib.metadata.version("convbert-pipelines")
    assert config["docker"]["image"].endswith(f":{ours}-ray{importlib.metadata.version('ray')}")


def test_no_secret_stands_in_it(config: dict[str, Any]) -> None:
    assert "RAY_AUTH_MODE=token" in " ".join(config["docker"]["run_options"])
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert not re.search(r"AKIA|ASIA|aws_(access|secret)|RAY_AUTH_TOKEN|password", TEXT, re.IGNORECASE)
    assert all("IamInstanceProfile" in node["node_config"] for node in config["available_node_types"].values())


def test_zones_and_the_heads_rights_belong_to_it(config: dict[str, Any]) -> None:
    provider = config["provider"]
    assert all(zone[:-1] == provider["region"] for zone in provider["availability_zone"].split(","))
    policy = json.loads((ROOT / "deploy/aws/head-policy.json").read_text(encoding="utf-8"))
    (ending,) = (one for one in policy["Statement"] if "ec2:TerminateInstances" in one["Action"])
    assert ending["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": config["cluster_name"]}}


@pytest.mark.parametrize("role", ["head", "worker"])
def test_machines_write_where_the_job_writes_and_read_the_rest(role: str) -> None:
    policy = json.loads((ROOT / f"deploy/aws/{role}-policy.json").read_text(encoding="utf-8"))
    _, settings = yaml.safe_load_all((ROOT / "deploy/kubernetes/common.yaml").read_text(encoding="utf-8"))
    job = yaml.safe_load(settings["data"]["job.yaml"])
    arn = "arn:aws:s3:::"
    output = job["output"].replace("s3://", arn)
    bucket = output.removeprefix(arn).split("/")[0]
    assert all(url.startswith(f"s3://{bucket}/") for url in (*job["input"], job["model"]))
    assert not any(url.startswith(job["output"]) for url in (*job["input"], job["model"]))
    rights: dict[str, set[str]] = {}
    for one in policy["Statement"]:
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        for action in actions:
            if action.startswith("s3:"):
                rights.setdefault(one["Resource"], set()).add(action)
    assert rights == {
        f"{arn}{bucket}": {"s3:ListBucket"},
        f"{arn}{bucket}/*": {"s3:GetObject"},
        f"{output}*": {"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"},
    }


def test_the_page_makes_the_role_that_spot_machines_want(config: dict[str, Any]) -> None:
    markets = [node["node_config"].get("InstanceMarketOptions") for node in config["available_node_types"].values()]
    assert {"MarketType": "spot"} in markets
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in page
    head = json.loads((ROOT / "deploy/aws/head-policy.json").read_text(encoding="utf-8"))
    assert "iam:CreateServiceLinkedRole" not in [action for one in head["Statement"] for action in one["Action"]]


@pytest.mark.slow
def test_aws_gets_what_it_understands(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's launcher, with every request checked by boto's model of EC2."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray puts the key pair
    (tmp_path / ".ssh").mkdir()
    from moto import mock_aws

    with mock_aws():
        import boto3

        iam = boto3.client("iam")
        aws = ROOT / "deploy/aws"
        for name in ("convbert-head", "convbert-worker"):  # as docs/clusters.md makes them; policies' forms are checked
            policy = (aws / f"{name.removeprefix('convbert-')}-policy.json").read_text(encoding="utf-8")
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=(aws / "assume-role.json").read_text("utf-8"))
            iam.put_role_policy(RoleName=name, PolicyName="convbert", PolicyDocument=policy)
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        ready = bootstrap_aws(config)
        provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
        for name, node in ready["available_node_types"].items():
            tags = {"ray-node-kind": "head" if name == "head" else "worker", "ray-user-node-type": name}
            provider.create_node(node["node_config"], tags, 1)
        reservations = boto3.client("ec2", region_name=ready["provider"]["region"]).describe_instances()["Reservations"]
    machines = [machine for reservation in reservations for machine in reservation["Instances"]]
    kinds = sorted((machine["InstanceType"], machine.get("InstanceLifecycle", "on-demand")) for machine in machines)
    assert kinds == [
        ("g5.xlarge", "on-demand"),
        ("g5.xlarge", "spot"),
        ("m6i.4xlarge", "on-demand"),
        ("m6i.large", "on-demand"),
    ]


@pytest.mark.parametrize(
    ("device", "failed", "wanted"),
    [
        ("cuda", [], {"gpu-spot": 3, "cpu": 1}),
        ("cuda", ["gpu-spot"], {"gpu-on-demand": 2, "gpu-spot": 1, "cpu": 1}),
        ("cpu", [], {"cpu": 2}),
    ],
)
def test_rays_autoscaler_meets_the_jobs_requests(device: str, failed: Sequence[str], wanted: dict[str, int]) -> None:
    """Three actors and eight tasks of each other stage, from no worker at all."""
    assert nodes_for(hardware(device, actors=3), n_tasks=8, failed=failed) == wanted


def test_an_order_of_labels_would_insist_on_spot_machines_that_do_not_come() -> None:
    """Why the job leaves the market to the cluster's priorities (docs/decisions/0013)."""
    asked = hardware("cuda", actors=3, actor_nodes=["ray.io/market-type=spot", "ray.io/market-type=on-demand"])
    assert nodes_for(asked, n_tasks=0, failed=["gpu-spot"]) == {"gpu-spot": 3}


def test_an_order_of_labels_chooses_where_there_is_a_choice() -> None:
    asked = hardware("cuda", actors=1, actor_nodes=["ray.io/market-type=on-demand", "ray.io/market-type=spot"])
    assert nodes_for(asked, n_tasks=0) == {"gpu-on-demand": 1}
    asked = hardware("cuda", actors=1, actor_nodes=["ray.io/accelerator-type=H100"])
    assert nodes_for(asked, n_tasks=0) == {}
