"""cluster.yaml's node types in; what Ray's autoscaler would start for a job's requests out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from pipelines import resources
from pipelines.resources import Hardware, share_out
from pipelines.spec import JobSpec

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text(encoding="utf-8"))
HEAD = CONFIG["head_node_type"]
NODE_TYPES: dict[str, Any] = {name: node for name, node in CONFIG["available_node_types"].items() if name != HEAD}


def hardware(device: str, *, actors: int, **changes: Any) -> Hardware:
    """How a job shares out the cluster when only its head is up."""
    cpus = {"actor_cpus": 8} if device == "cpu" else {}
    spec = {"input": ["in"], "output": "out", "model": "m", "max_actors": actors, **cpus, **changes}
    head = {"Alive": True, "Resources": {}}  # Ray leaves zeros out
    with (
        patch.object(resources.ray, "nodes", return_value=[head]),
        patch.object(resources.ray, "cluster_resources", return_value={}),
    ):
        return share_out(JobSpec.of(spec), device, n_units=100)


def nodes_for(asked: Hardware, *, n_tasks: int, failed: Sequence[str] = ()) -> dict[str, int]:
    """What Ray's autoscaler starts for all actors and for so many tasks of each stage.

    Args:
        asked: the job's hardware.
        n_tasks: of each of the stages beside the actors.
        failed: node types that AWS could not give a moment ago.
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    config = AutoscalingConfig(CONFIG, skip_content_hash=True)
    selectors = [
        [(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in labels.items()]
        for labels in asked.actor_nodes
    ]
    actor = {"CPU": asked.actor_cpus, **({"GPU": asked.actor_gpus} if asked.actor_gpus else {})}
    requests = [ResourceRequestUtil.make(actor, None, selectors or None)] * asked.max_actors
    for cpus in (asked.read_cpus, asked.task_cpus, asked.task_cpus, asked.task_cpus):
        requests += [ResourceRequestUtil.make({"CPU": cpus})] * n_tasks
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            cloud_resource_availabilities=dict.fromkeys(failed, 0.0),
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    started: Counter[str] = Counter()
    for launch in reply.to_launch:
        started[launch.instance_type] += launch.count
    return dict(started)
