"""KubeRay's CRDs in, the small schemas out that the tests of deploy/kubernetes/ use.

python -m tests.deploy.prune_schemas PATH/helm-chart/kuberay-operator/crds   # of the release in KUBERAY

Descriptions go, and so do whole Kubernetes types (pod templates, services), whose schemas kubernetes-validate has.
Objects become closed: a name that KubeRay does not know, and that the API server would drop in silence, is an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KUBERAY = "v1.7.0"
KINDS = ("rayclusters", "raycronjobs", "rayjobs", "rayservices")
SCHEMAS = Path(__file__).parent / "schemas"
KEPT = ("type", "required", "enum", "items", "minimum", "maximum", "minItems", "pattern", "x-kubernetes-int-or-string")


def pruned(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema's structure and types."""
    properties = schema.get("properties", {})
    if "containers" in properties.get("spec", {}).get("properties", {}) or "clusterIP" in properties.get(
        "spec", {}
    ).get("properties", {}):
        return {"type": "object"}  # a pod template or a service
    result = {key: schema[key] for key in KEPT if key in schema}
    if "items" in schema:
        result["items"] = pruned(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = pruned(schema["additionalProperties"])
    if properties:
        result["properties"] = {name: pruned(value) for name, value in properties.items() if name != "status"}
        result["additionalProperties"] = False
    return result


def main(crds: Path) -> None:
    """Write each kind's newest version."""
    SCHEMAS.mkdir(exist_ok=True)
    for kind in KINDS:
        crd = yaml.safe_load((crds / f"ray.io_{kind}.yaml").read_text(encoding="utf-8"))
        version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
        schema = pruned(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        document = {"$comment": f"KubeRay {KUBERAY}, by tests/deploy/prune_schemas.py", **schema}
        text = json.dumps(document, separators=(",", ":"), sort_keys=True)
        (SCHEMAS / f"{crd['spec']['names']['kind']}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
