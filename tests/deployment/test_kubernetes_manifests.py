"""Every manifest fits its schema, strictly, and keeps the rules that no schema knows."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from commands import ROOT, manifests

from jobs import run_rayjob
from qualitygate import logs
from qualitygate.errors import DeadlineReached, NightRefused

# The oldest and the newest release whose schemas the manifests are held to.
RELEASES = ("1.33", kubernetes_validate.latest_version().rpartition(".")[0])
SCHEMA = yaml.safe_load((ROOT / "tests" / "deployment" / "rayjob_schema.yaml").read_text(encoding="utf-8"))
DOCUMENTS = {f"{name}:{document['kind']}/{document['metadata']['name']}": document for name, document in manifests()}
RAYJOBS = {name: document for name, document in DOCUMENTS.items() if document["kind"] == "RayJob"}
CORE = {name: document for name, document in DOCUMENTS.items() if document["kind"] != "RayJob"}
# Maps whose keys are names of one's own, or of resources.
FREE = ("labels", "annotations", "requests", "limits", "matchLabels", "nodeSelector")
# Where something is in a manifest: keys, and places in lists.
Place = tuple[str | int, ...]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def templates(rayjob: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod templates of a RayJob, by whose they are."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    yield "submitter", rayjob["spec"]["submitterPodTemplate"]


PODS = {f"{name}:{whose}": template for name, job in RAYJOBS.items() for whose, template in templates(job)}
PODS |= {name: job["spec"]["jobTemplate"]["spec"]["template"] for name, job in CORE.items() if job["kind"] == "CronJob"}


def validate_pod(template: dict[str, Any], release: str) -> None:
    """A pod template by Kubernetes' strict schema; as in a file, so that shared parts don't matter."""
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    kubernetes_validate.validate(whole, release, strict=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", CORE)
def test_kubernetes_own_kinds_fit_its_schemas(name: str, release: str) -> None:
    assert kubernetes_validate.validate(CORE[name], release, strict=True) == release


@pytest.mark.parametrize("name", RAYJOBS)
def test_rayjobs_fit_the_schema_of_their_fields(name: str) -> None:
    jsonschema.validate(RAYJOBS[name], SCHEMA)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", PODS)
def test_pod_templates_fit_kubernetes_schema(name: str, release: str) -> None:
    validate_pod(PODS[name], release)


def test_the_schemas_are_strict() -> None:
    """Proof that a wrong field is found at every level."""
    job = yaml.safe_load(yaml.safe_dump(next(iter(RAYJOBS.values()))))
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(job, SCHEMA)
    for whose, template in templates(job):
        template["spec"]["containers"][0]["resource"] = {}
        with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
            validate_pod(template, RELEASES[-1])
        assert whose
    policy = yaml.safe_load(yaml.safe_dump(next(one for one in CORE.values() if one["kind"] == "NetworkPolicy")))
    policy["spec"]["ingres"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="ingres"):
        kubernetes_validate.validate(policy, RELEASES[-1], strict=True)


def keys(part: Any, path: Place = ()) -> Iterator[Place]:
    """Where each key is, but for those of free maps."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield (*path, key)
            if key not in FREE:
                yield from keys(value, (*path, key))
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from keys(value, (*path, number))


def misspelt(job: dict[str, Any], path: Place) -> dict[str, Any]:
    """A copy with one key wrong."""
    made: dict[str, Any] = json.loads(json.dumps(job))
    holder: Any = made
    for step in path[:-1]:
        holder = holder[step]
    holder[f"{path[-1]}x"] = holder.pop(path[-1])
    return made


@cache
def fits(template: str) -> bool:
    """Whether a pod template, as JSON, is one by Kubernetes' strict schema; most are the same in every RayJob."""
    try:
        validate_pod(json.loads(template), RELEASES[-1])
    except kubernetes_validate.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", RAYJOBS)
def test_no_key_of_a_rayjob_can_be_misspelt(name: str) -> None:
    checked = jsonschema.Draft202012Validator(SCHEMA)

    def accepted(job: dict[str, Any]) -> bool:
        return checked.is_valid(job) and all(fits(json.dumps(template)) for _, template in templates(job))

    assert accepted(RAYJOBS[name])
    found = list(keys(RAYJOBS[name]))
    assert len(found) > 100
    passing = [".".join(map(str, path)) for path in found if accepted(misspelt(RAYJOBS[name], path))]
    assert not passing


def test_parameters_of_ray_start_are_its_own() -> None:
    from ray.scripts.scripts import start

    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    named = SCHEMA["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]["headGroupSpec"]["properties"]
    assert set(named["rayStartParams"]["propertyNames"]["enum"]) <= options


def test_the_rayjobs_are_what_the_script_writes() -> None:
    script = ROOT / "scripts" / "rayjob_manifests.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PODS)
def test_no_container_is_privileged_or_unbounded(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert {"cpu", "memory"} <= set(limits)
        # More memory than was asked for may be taken back by killing the pod.
        assert whole(requests["memory"]) <= whole(limits["memory"])


def whole(quantity: str) -> int:
    """Bytes of a quantity in Mi or Gi."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1 << 20, "Gi": 1 << 30}[unit]


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_rayjob_is_bounded_guarded_and_of_one_version(name: str) -> None:
    spec = RAYJOBS[name]["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] <= 72 * 3600
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == version("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for whose, template in templates(RAYJOBS[name]):
        (container,) = template["spec"]["containers"]
        kind = "gpu" if whose == "gpu" else "cpu"
        assert container["image"] == f"registry.example.com/qualitygate:{VERSION}-{kind}"
        # The network policy knows them by this.
        assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "qualitygate"
    # KubeRay makes longer names for pods and services from it.
    assert len(RAYJOBS[name]["metadata"]["name"]) <= 47


def test_gpu_workers_ask_for_a_gpu_and_go_where_there_is_one() -> None:
    groups = {
        name: group for name, job in RAYJOBS.items() for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert {group["groupName"] for group in groups.values()} == {"cpu", "gpu"}
    for group in groups.values():
        pod = group["template"]["spec"]
        on_gpu = group["groupName"] == "gpu"
        assert ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) == on_gpu
        assert (pod.get("nodeSelector") == {"nvidia.com/gpu.present": "true"}) == on_gpu
        assert any(one["key"] == "nvidia.com/gpu" for one in pod["tolerations"]) == on_gpu


def test_only_the_head_has_a_token_of_kubernetes() -> None:
    for name, template in PODS.items():
        if ":RayJob/" in name:
            assert template["spec"].get("automountServiceAccountToken", True) == name.endswith(":head"), name


def test_what_is_named_is_there() -> None:
    """Config maps and service accounts that pods name are in these files; the Secret isn't, and may be absent."""
    known = {(one["kind"], one["metadata"]["name"]) for one in DOCUMENTS.values()}
    assert "Secret" not in {kind for kind, _ in known}
    for template in PODS.values():
        pod = template["spec"]
        if "serviceAccountName" in pod:
            assert ("ServiceAccount", pod["serviceAccountName"]) in known
        for volume in pod.get("volumes", []):
            assert ("ConfigMap", volume["configMap"]["name"]) in known
        for source in [source for container in pod["containers"] for source in container.get("envFrom", [])]:
            if "secretRef" in source:
                assert source == {"secretRef": {"name": "qualitygate-storage", "optional": True}}
            else:
                assert ("ConfigMap", source["configMapRef"]["name"]) in known


def test_everything_is_in_the_one_namespace() -> None:
    for name, document in DOCUMENTS.items():
        assert document["metadata"].get("namespace", "qualitygate") == "qualitygate", name
        assert ("namespace" in document["metadata"]) == (document["kind"] != "Namespace"), name


def test_nothing_reads_like_a_credential() -> None:
    for path in [*(ROOT / "manifests" / "kubernetes").iterdir(), ROOT / "cluster.yaml", ROOT / "Dockerfile"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|(?i:secret_access_key|password)\s*[:=]", text), path.name


def cronjob() -> dict[str, Any]:
    (found,) = [document for document in CORE.values() if document["kind"] == "CronJob"]
    return found


def test_one_night_at_a_time() -> None:
    spec = cronjob()["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["timeZone"] == "Etc/UTC"
    night = spec["jobTemplate"]["spec"]
    (rayjob,) = [job for name, job in RAYJOBS.items() if name.startswith("nightly-rayjob.yaml")]
    # Kubernetes counts the night as over when its pod ends, so the pod outlives every try of the RayJob.
    tries = 1 + rayjob["spec"]["backoffLimit"]
    assert night["activeDeadlineSeconds"] > tries * rayjob["spec"]["activeDeadlineSeconds"]
    # The Job's name, CronJob's and ten digits, becomes the RayJob's.
    assert len(cronjob()["metadata"]["name"]) + 11 <= 47


def test_a_night_that_was_refused_is_given_no_second_cluster() -> None:
    """KubeRay makes a new cluster for every exit code but 0 while tries are left; 3 and 4 are a night's own ends."""
    assert {DeadlineReached.exit_code, NightRefused.exit_code} == {3, 4}
    for name, job in RAYJOBS.items():
        nightly = name.startswith("nightly-rayjob.yaml")
        assert job["spec"]["backoffLimit"] == (0 if nightly else 1), name
        # In this mode alone the submitter looks first whether the job was submitted, so its own tries start no second.
        assert job["spec"]["submissionMode"] == "K8sJobMode", name
        assert job["spec"]["submitterConfig"]["backoffLimit"] >= 1, name
        assert job["spec"]["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never", name


def test_pods_log_json() -> None:
    (environment,) = [one for one in CORE.values() if one["metadata"]["name"] == "qualitygate-environment"]
    assert environment["data"][logs.VARIABLE] == logs.JSON
    for name, template in PODS.items():
        if not name.endswith(":submitter"):
            sources = template["spec"]["containers"][0]["envFrom"]
            assert {"configMapRef": {"name": "qualitygate-environment"}} in sources, name


def test_the_nights_pod_creates_the_rayjob_that_is_mounted(tmp_path: Path) -> None:
    pod = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:3] == ["python", "-m", "jobs.run_rayjob"]
    (path,) = container["command"][3:]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    (document,) = [one for one in CORE.values() if one["metadata"]["name"] == volume["configMap"]["name"]]
    file = tmp_path / Path(path).relative_to(mount["mountPath"])
    file.write_text(document["data"][file.name])
    # As the pod reads it, with the environment that it has.
    names = [one["name"] for one in container["env"]]
    fields = [one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"]]
    assert dict(zip(names, fields, strict=True)) == {
        "JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
        "JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
        "NAMESPACE": "metadata.namespace",
    }
    owned = run_rayjob.owned(run_rayjob.read(file), name="night-1", uid="u", namespace="qualitygate")
    jsonschema.validate(owned, SCHEMA)


def test_the_nights_pod_may_create_and_read_rayjobs_and_nothing_else() -> None:
    account = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    (role,) = [one for one in CORE.values() if one["kind"] == "Role"]
    (binding,) = [one for one in CORE.values() if one["kind"] == "RoleBinding"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": role["metadata"]["name"],
    }
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "qualitygate"}]
    assert not [one for one in CORE.values() if one["kind"].startswith("Cluster")]


def test_only_silence_of_the_api_starts_the_pod_again() -> None:
    night = cronjob()["spec"]["jobTemplate"]["spec"]
    (rule,) = night["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    assert run_rayjob.Unavailable("x").exit_code not in rule["onExitCodes"]["values"]
    assert night["template"]["spec"]["restartPolicy"] == "Never"
