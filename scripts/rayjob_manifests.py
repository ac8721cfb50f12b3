"""Writes manifests/kubernetes/rayjob-*.yaml: one RayJob a job, all from the one template below; also the nightly one.

python scripts/rayjob_manifests.py          # writes the files
python scripts/rayjob_manifests.py --check  # exit code 1 when one isn't what would be written
"""

import sys
import textwrap
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "manifests" / "kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What differs between the jobs: the module in `jobs` and its configuration, where it runs, how long at most.

    retries: how often a new cluster is made after a failure; why: the reason for that number.
    """

    name: str
    module: str
    on_gpus: bool
    nodes: int
    hours: int
    retries: int = 1
    why: str = "Every job goes on where it was stopped, so a lost head costs what was not committed."


JOBS = (
    Job(name="score", module="score", on_gpus=False, nodes=4, hours=24),
    Job(name="robustness", module="robustness", on_gpus=False, nodes=1, hours=6),
    Job(name="train-baseline", module="train_baseline", on_gpus=True, nodes=1, hours=12),
    Job(name="predict", module="predict", on_gpus=True, nodes=1, hours=6),
    Job(name="study", module="study", on_gpus=True, nodes=4, hours=72),
)

NIGHTLY = Job(
    name="nightly",
    module="nightly",
    on_gpus=False,
    nodes=4,
    hours=8,
    retries=0,
    # KubeRay only tells 0 from the rest: exit codes 3 (deadline) and 4 (refused) are ends of a night, not failures.
    why="To KubeRay a refused night, or one that met its deadline, has failed; a second cluster would do nothing more.",
)

HEADER = "# Written by scripts/rayjob_manifests.py: change it there. docs/deployment.md says how to use this.\n"

RAYJOB = Template("""\
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: qualitygate-$name
  namespace: qualitygate
  labels: &labels
    app.kubernetes.io/name: qualitygate
    app.kubernetes.io/component: $name
spec:
  entrypoint: python -m jobs.$module --config /etc/qualitygate/$name.yaml
  # The cluster lives as long as the job. What the job leaves is in the bucket.
  shutdownAfterJobFinishes: true
  ttlSecondsAfterFinished: 600
  activeDeadlineSeconds: $seconds
  # $why
  backoffLimit: $retries
  # The submitter asks first whether the job is there already: started again, it follows the log and submits nothing.
  submissionMode: K8sJobMode
  submitterConfig: {backoffLimit: 2}
  rayClusterSpec:
    rayVersion: $ray
    # Ray answers nobody without the token that the operator makes.
    authOptions:
      mode: token
    # Nodes without work are given back while the last photographs are done.
    enableInTreeAutoscaling: true
    autoscalerOptions:
      idleTimeoutSeconds: 300
      resources:
        requests: {cpu: 200m, memory: 512Mi}
        limits: {cpu: 500m, memory: 512Mi}
      securityContext: &unprivileged
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
    headGroupSpec:
      rayStartParams:
        # The driver's place: no task or actor that asks for a CPU comes here.
        num-cpus: "0"
      template:
        metadata:
          labels: *labels
        spec:
          serviceAccountName: qualitygate
          securityContext: &pod
            runAsNonRoot: true
            runAsUser: 1000
            runAsGroup: 1000
            fsGroup: 1000
            seccompProfile: {type: RuntimeDefault}
          # Not on nodes that may go away at any time.
          affinity:
            nodeAffinity:
              requiredDuringSchedulingIgnoredDuringExecution:
                nodeSelectorTerms:
                  - matchExpressions:
                      - {key: karpenter.sh/capacity-type, operator: NotIn, values: [spot]}
                      - {key: eks.amazonaws.com/capacityType, operator: NotIn, values: [SPOT]}
                      - {key: cloud.google.com/gke-spot, operator: NotIn, values: ["true"]}
                      - {key: kubernetes.azure.com/scalesetpriority, operator: NotIn, values: [spot]}
          containers:
            - name: ray-head
              image: registry.example.com/qualitygate:$version-cpu
              securityContext: *unprivileged
              envFrom: &environment
                - configMapRef: {name: qualitygate-environment}
                # Without it, the pods' own identity is used.
                - secretRef: {name: qualitygate-storage, optional: true}
              resources:
                requests: {cpu: "2", memory: 8Gi, ephemeral-storage: 20Gi}
                limits: {cpu: "2", memory: 8Gi, ephemeral-storage: 20Gi}
              volumeMounts:
                - {name: configuration, mountPath: /etc/qualitygate, readOnly: true}
          volumes:
            - name: configuration
              configMap: {name: qualitygate}
    workerGroupSpecs:
      - groupName: $group
        replicas: $nodes
        minReplicas: 1
        maxReplicas: $nodes
        rayStartParams: {}
        template:
          metadata:
            labels: *labels
          spec:
            serviceAccountName: qualitygate
            automountServiceAccountToken: false
            securityContext: *pod
$placement
            containers:
              - name: ray-worker
                image: registry.example.com/qualitygate:$version-$image
                securityContext: *unprivileged
                envFrom: *environment
                resources:
                  requests: {$resources}
                  limits: {$resources}
  submitterPodTemplate:
    metadata:
      labels: *labels
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext: *pod
      containers:
        - name: ray-job-submitter
          image: registry.example.com/qualitygate:$version-cpu
          securityContext: *unprivileged
          resources:
            requests: {cpu: 250m, memory: 512Mi}
            limits: {cpu: "1", memory: 1Gi}
""")

# The CronJob's pod creates a RayJob from this file each night.
CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: qualitygate-rayjob-nightly
  namespace: qualitygate
data:
  rayjob.yaml: |
"""

SPOT = """\
            # Spot nodes where there are any, by whatever name the cloud gives them.
            affinity:
              nodeAffinity:
                preferredDuringSchedulingIgnoredDuringExecution:
                  - weight: 100
                    preference:
                      matchExpressions: [{key: karpenter.sh/capacity-type, operator: In, values: [spot]}]
                  - weight: 100
                    preference:
                      matchExpressions: [{key: eks.amazonaws.com/capacityType, operator: In, values: [SPOT]}]
                  - weight: 100
                    preference:
                      matchExpressions: [{key: cloud.google.com/gke-spot, operator: In, values: ["true"]}]
                  - weight: 100
                    preference:
                      matchExpressions: [{key: kubernetes.azure.com/scalesetpriority, operator: In, values: [spot]}]
            tolerations:
              - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
              - {key: kubernetes.azure.com/scalesetpriority, operator: Equal, value: spot, effect: NoSchedule}"""
GPU = """
              - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
            # The label of NVIDIA's feature discovery, which comes with its GPU operator.
            nodeSelector:
              nvidia.com/gpu.present: "true\""""


def rayjob(job: Job) -> str:
    """The RayJob of a job, as YAML."""
    size = 'cpu: "8", memory: 32Gi, ephemeral-storage: 50Gi'
    return RAYJOB.substitute(
        name=job.name,
        module=job.module,
        seconds=job.hours * 3600,
        retries=job.retries,
        why=job.why,
        ray=version("ray"),
        version=tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        group="gpu" if job.on_gpus else "cpu",
        image="gpu" if job.on_gpus else "cpu",
        nodes=job.nodes,
        placement=SPOT + (GPU if job.on_gpus else ""),
        resources=size + (', nvidia.com/gpu: "1"' if job.on_gpus else ""),
    )


def files() -> dict[Path, str]:
    """Every file that is written, with its text."""
    found = {FOLDER / f"rayjob-{job.name}.yaml": HEADER + rayjob(job) for job in JOBS}
    found[FOLDER / "nightly-rayjob.yaml"] = HEADER + CONFIG_MAP + textwrap.indent(rayjob(NIGHTLY), "    ")
    return found


def main() -> int:
    """Write, or check with --check."""
    stale = [path for path, text in files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} isn't up to date: run 'python scripts/rayjob_manifests.py'")
        return int(bool(stale))
    for path in stale:
        path.write_text(files()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
