"""How busy the replicas are in, how many there should be out: what Serve's controller asks for autoscaling.

Serve takes the function along to its controller by value, where this project need not be installed: it may name nothing
but what it is given.
"""

from __future__ import annotations

from typing import Any


def desired_replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """As many as the requests under way call for, or as the queues do, whichever are more.

    Serve counts requests alone. Of long ones a replica takes fewer than any useful target before more would be
    answered too late, so that it would refuse them for ever without another being added.

    Args:
        context: Serve's ``AutoscalingContext``, with ``fullness`` of each replica's queue, 0 to 1.

    Returns:
        The number, to which Serve applies its bounds and delays, and no state.
    """
    if not context.current_num_replicas:
        return context.target_num_replicas, {}
    by_requests = context.total_num_requests / context.config.get_target_ongoing_requests()
    by_queues = 2 * sum(context.aggregated_metrics.get("fullness", {}).values())  # half full is as it should be
    return max(by_requests, by_queues), {}
