"""Create a RayJob on Kubernetes from a file and wait for its end: what the pod of a CronJob runs.

As long as it waits, Kubernetes counts the CronJob as running, so `concurrencyPolicy: Forbid` holds for the whole
RayJob and not only for the moment of its creation. The RayJob has the name of the pod's Job: a pod that is started
again finds it and waits on. It belongs to that Job and is deleted with it. Exit codes: 0 the RayJob succeeded,
1 it failed, 2 something to mend, 75 Kubernetes' API stayed silent: start again.

QUALITYGATE_LOG_FORMAT=json: what it says is a JSON object a line.

In the pod's environment: JOB_NAME and JOB_UID, the Job that the RayJob belongs to, and NAMESPACE.
"""

import argparse
import http.client
import json
import logging
import os
import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import yaml

from qualitygate import logs
from qualitygate.errors import ConfigurationError, QualityGateError

# By its name, not by `__name__`: under `python -m` that is `__main__`, of which logs in JSON take warnings alone.
logger = logging.getLogger("jobs.run_rayjob")

# Where Kubernetes puts a pod's own credentials.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# States that KubeRay doesn't leave by itself.
ENDED = ("Complete", "Failed", "ValidationFailed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The Kubernetes API: its address, the file of this pod's token and, for https, whose certificate to trust."""

    url: str
    token: Path
    trust: ssl.SSLContext | None = None


class Unavailable(QualityGateError):
    """The API did not answer, or not properly; asking again may help."""

    exit_code = os.EX_TEMPFAIL


def of_this_pod() -> Server:
    """The server as every pod finds it."""
    try:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    except KeyError as error:
        raise ConfigurationError(
            f"{error.args[0]} isn't set: this runs in a pod; elsewhere use 'kubectl create'"
        ) from None
    host = f"[{host}]" if ":" in host else host
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    return Server(url=f"https://{host}:{port}", token=ACCOUNT / "token", trust=trust)


def run(server: Server, rayjob: dict[str, Any], *, poll_s: float = 15.0, patience_s: float = 900.0) -> tuple[bool, str]:
    """Create the RayJob, or find it, and wait: whether it succeeded, and what KubeRay says of it.

    rayjob: the whole manifest, with name and namespace. poll_s: seconds between two looks. patience_s: seconds that
    the API may stay silent. Raises Unavailable after them, ConfigurationError when the API refuses.
    """
    name, namespace = rayjob["metadata"]["name"], rayjob["metadata"]["namespace"]
    folder = f"{server.url}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    silent_since: float | None = None
    created = False
    while True:
        try:
            if not created:
                made = _ask(server, "POST", folder, rayjob)
                logger.info("RayJob %s %s", name, "was there already" if made is None else "created")
                created = True
            status = (_ask(server, "GET", f"{folder}/{name}") or {}).get("status", {})
            silent_since = None
        except Unavailable as error:
            silent_since = silent_since or monotonic()
            if monotonic() - silent_since > patience_s:
                raise
            logger.warning("%s; asking again", error)
            status = {}
        state = status.get("jobDeploymentStatus", "")
        if state in ENDED:
            said = [status.get(key) for key in ("jobStatus", "reason", "message")]
            succeeded = state == "Complete" and status.get("jobStatus") == "SUCCEEDED"
            return succeeded, f"RayJob {name}: " + ", ".join(str(part) for part in [state, *said] if part)
        sleep(poll_s)


def _ask(server: Server, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The API's answer; None when what is to be created exists."""
    request = urllib.request.Request(url, method=method, data=json.dumps(body).encode() if body else None)
    # Read each time, as Kubernetes renews it.
    request.add_header("Authorization", f"Bearer {server.token.read_text(encoding='utf-8').strip()}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30, context=server.trust) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        said = error.read(1000).decode(errors="replace")
        if error.code == 409 and method == "POST":
            return None
        if error.code == 429 or error.code >= 500:
            raise Unavailable(f"Kubernetes' API answered {error.code}") from error
        if error.code == 404 and method == "GET":
            raise ConfigurationError(f"{url}: gone; somebody deleted the RayJob while it ran") from error
        raise ConfigurationError(f"{method} {url}: refused with {error.code}: {_message(said)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"Kubernetes' API did not answer ({error})") from error


def _message(said: str) -> str:
    try:
        return str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        return said[:200]


def owned(rayjob: dict[str, Any], *, name: str, uid: str, namespace: str) -> dict[str, Any]:
    """The manifest under the Job's name, to be deleted with that Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    metadata = {**rayjob.get("metadata", {}), "name": name, "namespace": namespace, "ownerReferences": [owner]}
    return {**rayjob, "metadata": metadata}


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the module's first lines."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.run_rayjob", description="Create a RayJob and wait for its end."
    )
    parser.add_argument("manifest", type=Path, help="YAML file of a RayJob")
    path = parser.parse_args(arguments).manifest
    try:
        logs.set_up(verb="run_rayjob")
        if logs.form() == logs.TEXT:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        rayjob = read(path)
        missing = [key for key in ("JOB_NAME", "JOB_UID", "NAMESPACE") if not os.environ.get(key)]
        if missing:
            raise ConfigurationError(
                f"{missing[0]} isn't set; take it from the pod's labels, as manifests/kubernetes does"
            )
        job = owned(rayjob, name=os.environ["JOB_NAME"], uid=os.environ["JOB_UID"], namespace=os.environ["NAMESPACE"])
        succeeded, said = run(of_this_pod(), job)
    except QualityGateError as error:
        if logs.form() == logs.JSON:
            logs.write("failed", str(error), level="error", error=type(error).__name__, exit_code=error.exit_code)
        else:
            sys.stderr.write(f"{error}\n")
        return error.exit_code
    logger.log(logging.INFO if succeeded else logging.ERROR, "%s", said)
    return 0 if succeeded else 1


def read(path: Path) -> dict[str, Any]:
    """The RayJob of a YAML file. Raises ConfigurationError when it is none."""
    try:
        rayjob = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} can't be read as YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(rayjob, dict) or rayjob.get("kind") != "RayJob":
        raise ConfigurationError(f"{path} is no RayJob; give a file with 'kind: RayJob'")
    return rayjob


if __name__ == "__main__":
    sys.exit(main())
