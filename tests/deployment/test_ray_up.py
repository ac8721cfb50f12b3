"""cluster.yaml goes through Ray's own loader and AWS provider, to the nodes that they would ask EC2 for."""

import copy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from click import NoSuchOption
from click.core import ParameterSource
from commands import ROOT
from moto import mock_aws
from ray.autoscaler._private import providers, util
from ray.scripts import scripts

WRITTEN = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
WORKERS = ("cpu_worker", "gpu_worker")


def loaded(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` reads it: defaults filled in, checked by Ray's schema."""
    prepared: dict[str, Any] = util.prepare_config(copy.deepcopy(config))
    util.validate_config(prepared)
    return prepared


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The security group in an AWS of the test's own, in this process, that has the profiles which the file names."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    # The provider writes a new key into ~/.ssh.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        region = WRITTEN["provider"]["region"]
        ec2 = boto3.resource("ec2", region_name=region)
        (network,) = list(ec2.vpcs.all())
        group = ec2.create_security_group(GroupName="ours", Description="ours", VpcId=network.id)
        for name in ("qualitygate-head", "qualitygate-worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=name)
        yield group.id


def test_rays_loader_takes_it() -> None:
    config = loaded(WRITTEN)
    assert config["head_node_type"] == "head"
    assert set(config["available_node_types"]) == {"head", *WORKERS}


def test_rays_loader_would_refuse_a_wrong_one() -> None:
    wrong = copy.deepcopy(WRITTEN)
    wrong["available_node_types"]["cpu_worker"]["resources"] = {"CPU": "eight"}
    with pytest.raises(Exception, match="eight"):
        loaded(wrong)


def test_the_head_schedules_nothing_and_workers_come_and_go() -> None:
    types = WRITTEN["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    (start,) = [command for command in WRITTEN["head_start_ray_commands"] if "ray start" in command]
    assert "--num-cpus=0" in start
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for name in WORKERS:
        assert types[name]["resources"]["CPU"] > 0
        assert types[name]["min_workers"] < types[name]["max_workers"]
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu_worker"]["resources"]["GPU"] == 1
    # A job needs two CPUs to start on.
    assert types["cpu_worker"]["min_workers"] * types["cpu_worker"]["resources"]["CPU"] >= 2
    assert sum(types[name]["max_workers"] for name in WORKERS) <= WRITTEN["max_workers"]


@pytest.mark.parametrize("command", [*WRITTEN["head_start_ray_commands"], *WRITTEN["worker_start_ray_commands"]])
def test_the_nodes_commands_are_rays(command: str) -> None:
    """Read by Ray's own command line, without being run."""
    program, verb, *arguments = shlex.split(command)
    assert program == "ray"
    read = scripts.cli.commands[verb].make_context(verb, list(arguments))
    given = [name for name in read.params if read.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    assert len(given) == len(arguments)


def test_a_wrong_option_of_ray_is_noticed() -> None:
    with pytest.raises(NoSuchOption):
        scripts.cli.commands["start"].make_context("start", ["--heads"])


def test_the_dashboard_is_on_loopback_and_asks_for_the_token() -> None:
    (start,) = [command for command in WRITTEN["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in WRITTEN["docker"]["run_options"]
    assert WRITTEN["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_nothing_is_installed_beside_the_image() -> None:
    """Ray's defaults would: an unfinished version of Ray on every node."""
    config = loaded(WRITTEN)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"):
        assert config[key] == []
    assert config["docker"]["image"] == f"registry.example.com/qualitygate:{VERSION}-cpu"
    worker = config["available_node_types"]["gpu_worker"]["docker"]["worker_image"]
    assert worker == f"registry.example.com/qualitygate:{VERSION}-gpu"


@pytest.mark.parametrize("name", WRITTEN["available_node_types"])
def test_node_configurations_are_requests_that_ec2_knows(name: str) -> None:
    """Ray hands them on unread: a misspelt key would show when the first node is started."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    request = WRITTEN["available_node_types"][name]["node_config"] | {"MinCount": 1, "MaxCount": 1}
    assert ParamValidator().validate(request, shape).generate_report() == ""
    wrong = ParamValidator().validate(request | {"ImageID": "x"}, shape)
    assert "ImageID" in wrong.generate_report()


def test_rays_aws_provider_starts_every_kind_of_node(aws: str) -> None:
    written = copy.deepcopy(WRITTEN)
    for node in written["available_node_types"].values():
        node["node_config"]["SecurityGroupIds"] = [aws]
    config = loaded(written)
    provider_class = providers._get_node_provider_cls(config["provider"])
    config = provider_class.bootstrap_config(provider_class.fillout_available_node_types_resources(config))

    # It made no role and no security group of its own, which would have far more rights.
    ec2 = boto3.resource("ec2", region_name=config["provider"]["region"])
    assert {group.group_name for group in ec2.security_groups.all()} == {"default", "ours"}
    assert boto3.client("iam").list_roles()["Roles"] == []

    provider = providers._get_node_provider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        tags = {"ray-user-node-type": name, "ray-node-name": name}
        provider.create_node_with_resources_and_labels(node["node_config"], tags, 1, node["resources"], {})
    started = {
        tag["Value"]: instance for instance in ec2.instances.all() for tag in instance.tags if tag["Key"] == "Name"
    }
    assert set(started) == set(config["available_node_types"])
    assert {name for name, instance in started.items() if instance.instance_lifecycle == "spot"} == set(WORKERS)
    for name, instance in started.items():
        assert [group["GroupId"] for group in instance.security_groups] == [aws]
        assert instance.iam_instance_profile["Arn"].endswith("-head" if name == "head" else "-worker")


@pytest.mark.parametrize("name", WORKERS)
def test_the_resources_are_those_of_the_instance_type(aws: str, name: str) -> None:
    node = WRITTEN["available_node_types"][name]
    client = boto3.client("ec2", region_name=WRITTEN["provider"]["region"])
    (kind,) = client.describe_instance_types(InstanceTypes=[node["node_config"]["InstanceType"]])["InstanceTypes"]
    assert node["resources"]["CPU"] == kind["VCpuInfo"]["DefaultVCpus"]
    assert node["resources"].get("GPU", 0) == sum(gpu["Count"] for gpu in kind.get("GpuInfo", {}).get("Gpus", []))
