"""How busy the replicas are in, how many there should be out: what Serve's controller asks for autoscaling.

Serve takes the function along to its controller by value, where this project need not be installed: it may name nothing
but what it is given.
"""

from __future__ import annotations

from typing import Any


def desired_replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """As many as the requests under way call for, or as the queues do, whichever are more.

    Serve counts requests alone. Of long ones a replica takes fewer than any useful target before more would be
    answered too late, so that it would refuse them for ever without another being added. And replicas that are just
    enough have short queues: none is taken away where the others would then be busy for more than 0.8 of the time.

    Args:
        context: Serve's ``AutoscalingContext``, with ``fullness`` of each replica's queue and the part of the time in
            which it was ``busy``, 0 to 1.

    Returns:
        The number, to which Serve applies its bounds and delays, and no state.
    """
    if not context.current_num_replicas:
        return context.target_num_replicas, {}
    by_requests = context.total_num_requests / context.config.get_target_ongoing_requests()
    told = context.aggregated_metrics
    by_queues = 2 * sum(told.get("fullness", {}).values())  # half full is as it should be
    by_work = min(context.current_num_replicas, sum(told.get("busy", {}).values()) / 0.8)
    return max(by_requests, by_queues, by_work), {}
