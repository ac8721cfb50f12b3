"""Compares the RayJobs of manifests/kubernetes, and the schema that tests hold them to, with a KubeRay release's CRD.

    python scripts/check_kuberay.py --crd ray.io_rayjobs.yaml

The CRD is KubeRay's (ray-operator/config/crd/bases in its repository, Apache-2.0); it isn't part of this project.
Exit code 1 when a manifest has a field or value that the release doesn't know, or the schema says another type.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "tests" / "deployment" / "rayjob_schema.yaml"
# Keywords that narrow a value in both, besides `type`.
COMPARED = ("type", "enum")


def released(path: Path) -> dict[str, Any]:
    """The schema of RayJob v1 in a CRD."""
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    (found,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema: dict[str, Any] = found["schema"]["openAPIV3Schema"]
    return schema


def strict(schema: Any) -> Any:
    """The same schema, refusing fields that it doesn't name; OpenAPI's `int-or-string` in JSON Schema's words."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    return made


def differences(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where our schema names a field that the release has not, or of another type or other choices."""
    for word in COMPARED:
        if word in ours and ours[word] != theirs.get(word):
            yield f"{path or 'RayJob'}: {word} is {ours[word]!r} in the schema, {theirs.get(word)!r} in the CRD"
    for name, field in ours.get("properties", {}).items():
        if path == ".metadata":
            # A CRD leaves an object's metadata to Kubernetes.
            return
        if name not in theirs.get("properties", {}):
            yield f"{path}.{name}: not in the CRD"
        else:
            yield from differences(field, theirs["properties"][name], f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(ours.get(word), dict):
            yield from differences(ours[word], theirs.get(word, {}), f"{path}[]")


def rayjobs() -> dict[str, dict[str, Any]]:
    """Every RayJob in manifests/kubernetes, by file name."""
    found = {}
    for path in sorted((ROOT / "manifests" / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] == "ConfigMap" and "rayjob.yaml" in document["data"]:
                document = yaml.safe_load(document["data"]["rayjob.yaml"])
            if document["kind"] == "RayJob":
                found[path.name] = document
    return found


def main() -> int:
    """Compare and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crd", type=Path, required=True, help="the release's ray.io_rayjobs.yaml")
    theirs = released(parser.parse_args().crd)
    problems = list(differences(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")), theirs))
    # A Kubernetes object's own metadata is an open object in a CRD.
    validator = jsonschema.Draft202012Validator(strict(theirs))
    jobs = rayjobs()
    for name, job in jobs.items():
        problems += [
            f"{name}: {'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(job)
        ]
    print("\n".join(problems) or f"{len(jobs)} RayJobs and the schema agree with the CRD")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
