"""Least privilege: who may do what, and that nobody may do what their code does not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fedgrass.cloud.infrastructure.provision import device_policy
from fedgrass.cloud.infrastructure.script import Caller
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.device_policy import policy_name
from fedgrass.protocol.names import command_key, job_prefix, sum_command, sum_request_key
from tests.fedgrass.cloud.infrastructure.calls import actions_of_function, actions_of_modules
from tests.fedgrass.cloud.infrastructure.resolved import ACCOUNT, BUCKET, REGION, Template, actions, allows
from tests.fixtures.places import ROOT, TEMPLATE

HANDLERS = sorted(
    path.stem for path in (ROOT / "fedgrass/cloud/rounds").glob("*.py") if "\ndef handler(" in path.read_text()
)
IOT = f"arn:aws:iot:{REGION}:{ACCOUNT}"
# What AWS does in the role's name, and no line of our code: reading the image, writing the log, deployments as IoT jobs.
OF_THE_PLATFORM = {
    "cloudwatch:PutMetricData",
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetAuthorizationToken",
    "ecr:GetDownloadUrlForLayer",
    "greengrass:TagResource",
    "iot:CancelJob",
    "iot:CreateJob",
    "iot:DeleteThingShadow",
    "iot:DescribeJob",
    "iot:DescribeThing",
    "iot:DescribeThingGroup",
    "iot:GetThingShadow",
    "iot:UpdateJob",
    "iot:UpdateThingShadow",
    "logs:CreateLogGroup",
    "logs:CreateLogStream",
    "logs:DescribeLogStreams",
    "logs:PutLogEvents",
    "s3:GetObjectVersion",  # GetObject with a version
}


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(ClaimPrefix="p-")


def device(template: Template, action: str, key: str, thing: str = "a") -> bool:
    resource = f"{BUCKET}/{key}" if key else BUCKET
    context = {"credentials-iot:ThingName": thing, "aws:ResourceAccount": ACCOUNT}
    return allows(template.statements("TokenExchangeRole"), action, resource, context)


def test_a_device_writes_its_own_updates_and_nobody_else_s(template: Template) -> None:
    assert device(template, "s3:PutObject", "updates/digits/000001/a/update.safetensors")
    assert not device(template, "s3:PutObject", "updates/digits/000001/b/update.safetensors")
    assert not device(template, "s3:PutObject", "updates/other/000001/a/update.safetensors")
    assert not device(template, "s3:PutObject", "updates/digits/000001/ab/update.safetensors")
    assert device(template, "s3:PutObject", "updates/digits/commands/a/some-id/parameters.safetensors")
    # A device whose name holds a wildcard gains nothing by it.
    assert not device(template, "s3:PutObject", "updates/digits/000001/b/update.safetensors", thing="*")


def one_key(statements: list[dict[str, Any]], context: dict[str, str], thing: str) -> list[str]:
    """The keys under a round's prefix, of those that somebody might try, that may be written."""
    names = ("update.safetensors", "x", "", "x/update.safetensors", "update.safetensors/x", "update.safetensorsx")
    folders = (thing, f"x/{thing}", f"{thing}/x", f"x/y/{thing}", "b", f"{thing}x", f"x{thing}", "")
    tried = [f"{BUCKET}/updates/digits/000001/{folder}/{name}" for folder in folders for name in names]
    return [key for key in tried if allows(statements, "s3:PutObject", key, context)]


def test_a_device_has_one_key_in_a_round(template: Template) -> None:
    statements, context = (
        template.statements("TokenExchangeRole"),
        {"credentials-iot:ThingName": "a", "aws:ResourceAccount": ACCOUNT},
    )
    assert one_key(statements, context, "a") == [f"{BUCKET}/updates/digits/000001/a/update.safetensors"]


@pytest.mark.parametrize("action", ["s3:GetObject", "s3:DeleteObject", "s3:GetObjectVersion"])
@pytest.mark.parametrize("owner", ["a", "b"])
def test_a_device_reads_and_deletes_no_update_not_even_its_own(template: Template, action: str, owner: str) -> None:
    assert not device(template, action, f"updates/digits/000001/{owner}/update.safetensors")


def test_a_device_reads_its_fleet_s_models_and_changes_none(template: Template) -> None:
    model = "models/digits/1.0.0/model.tflite"
    assert device(template, "s3:GetObject", model)
    assert not device(template, "s3:GetObject", "models/other/1.0.0/model.tflite")
    assert not any(device(template, action, model) for action in ("s3:PutObject", "s3:DeleteObject"))


@pytest.mark.parametrize("key", ["reports/digits/000001/report.json", "evaluation/digits/data.npz"])
def test_a_device_sees_neither_reports_nor_the_evaluation_set(template: Template, key: str) -> None:
    assert not any(device(template, action, key) for action in ("s3:GetObject", "s3:PutObject"))


def test_a_device_writes_to_no_bucket_of_another_account_whatever_its_name(template: Template) -> None:
    statements = template.statements("TokenExchangeRole")
    for account, allowed in ((ACCOUNT, True), ("999999999999", False)):
        context = {"credentials-iot:ThingName": "a", "aws:ResourceAccount": account}
        assert (
            allows(statements, "s3:PutObject", f"{BUCKET}/updates/digits/000001/a/update.safetensors", context)
            is allowed
        )
        assert allows(statements, "s3:GetObject", f"{BUCKET}/models/digits/1.0.0/model.json", context) is allowed
        parts = "arn:aws:s3:::fedgrass-components-eu-central-1-123456789012/com.fedgrass.Trainer/1.0.0/trainer.zip"
        assert allows(statements, "s3:GetObject", parts, context) is allowed


def test_a_device_reads_what_helpers_of_its_fleet_are_asked_to_sum_and_the_job_alone_writes_it(
    template: Template,
) -> None:
    key = "secure/digits/000001/a.json"
    assert device(template, "s3:GetObject", key)
    assert not device(template, "s3:PutObject", key)
    assert not device(template, "s3:GetObject", "secure/other/000001/a.json")
    role = template.statements("ProcessingRole")
    assert allows(role, "s3:PutObject", f"{BUCKET}/{key}")
    assert not allows(role, "s3:PutObject", f"{BUCKET}/secure/other/000001/a.json")


def test_a_device_lists_nothing(template: Template) -> None:
    assert not any(device(template, action, "") for action in ("s3:ListBucket", "s3:ListBucketVersions"))


def iot_policy(thing: str) -> list[dict[str, Any]]:
    policy = device_policy("digits", thing, "fedgrass-digits", Caller(ACCOUNT, REGION, "aws"))
    return list(policy["Statement"])


def test_a_device_s_iot_policy_is_refused_before_iot_core_refuses_it() -> None:
    caller = Caller(ACCOUNT, "ap-southeast-2", "aws")
    policy = device_policy("f" * 40, "t" * 64, "fedgrass-" + "f" * 40, caller)
    assert len(json.dumps(policy, separators=(",", ":"))) <= 2048
    with pytest.raises(ConfigurationError, match="too long"):
        device_policy("f" * 40, "t" * 128, "fedgrass-" + "f" * 40, caller)


def test_a_device_speaks_on_its_own_topics_only() -> None:
    policy = iot_policy("a")
    for channel in ("heartbeat", "update", "model", "reply"):
        assert allows(policy, "iot:Publish", f"{IOT}:topic/fedgrass/digits/devices/a/{channel}")
        assert not allows(policy, "iot:Publish", f"{IOT}:topic/fedgrass/digits/devices/b/{channel}")
    assert not allows(policy, "iot:Publish", f"{IOT}:topic/fedgrass/digits/round")
    assert not allows(policy, "iot:RetainPublish", f"{IOT}:topic/fedgrass/digits/devices/a/update")


def test_a_device_hears_its_round_and_its_own_commands_only() -> None:
    policy = iot_policy("a")
    for topic in ("fedgrass/digits/round", "fedgrass/digits/devices/a/command", "$aws/things/a/jobs/notify-next"):
        assert allows(policy, "iot:Receive", f"{IOT}:topic/{topic}")
        assert allows(policy, "iot:Subscribe", f"{IOT}:topicfilter/{topic}")
    for topic in ("fedgrass/digits/devices/b/command", "fedgrass/digits/#", "$aws/things/b/jobs/notify-next", "#"):
        assert not allows(policy, "iot:Receive", f"{IOT}:topic/{topic}")
        assert not allows(policy, "iot:Subscribe", f"{IOT}:topicfilter/{topic}")


def test_a_device_connects_as_itself_only_and_its_name_is_no_prefix_of_another_s() -> None:
    policy = iot_policy("a")
    assert allows(policy, "iot:Connect", f"{IOT}:client/a")
    assert allows(policy, "iot:Connect", f"{IOT}:client/a#2")  # the nucleus' second connection
    assert not allows(policy, "iot:Connect", f"{IOT}:client/ab")
    assert not allows(policy, "iot:Publish", f"{IOT}:topic/$aws/things/ab/jobs/x/update")
    assert allows(policy, "iot:AssumeRoleWithCertificate", f"{IOT}:rolealias/fedgrass-digits")
    assert not allows(policy, "iot:AssumeRoleWithCertificate", f"{IOT}:rolealias/fedgrass-other")


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_function_may_do_what_its_code_does_and_nothing_else(template: Template, handler: str) -> None:
    [function] = [
        found
        for found in template.of_type("AWS::Lambda::Function").values()
        if found["Handler"] == f"fedgrass.cloud.rounds.{handler}.handler"
    ]
    role = function["Role"].rpartition(":")[2]
    # Lambda writes the log, and what the function failed at, in its name.
    of_lambda = {"logs:CreateLogStream", "logs:PutLogEvents", "sqs:SendMessage"}
    allowed = actions(template.statements(role)) - of_lambda - OF_THE_PLATFORM
    assert allowed == actions_of_function(f"fedgrass.cloud.rounds.{handler}", "handler") - OF_THE_PLATFORM


def test_the_job_may_do_what_its_code_does_and_nothing_else(template: Template) -> None:
    # dynamodb's only call is in the tables' helpers, which other code uses for more.
    called = actions_of_modules(
        "fedgrass/cloud/aggregator",
        leave_out={"commands.py", "offline.py"},
        services=("s3", "greengrassv2", "sagemaker"),
    )
    called |= actions_of_function("fedgrass.protocol.tables", "load_round")
    called |= actions_of_function("fedgrass.protocol.participations", "participations_at")
    called |= actions_of_function("fedgrass.protocol.participations", "participations")
    called |= actions_of_function("fedgrass.protocol.roster", "things_of_fleet")
    called |= actions_of_function("fedgrass.cloud.aggregator.device_evaluation", "DeviceEvaluation")
    for module, function in (
        ("canaries", "deploy_to_canaries"),
        ("finish", "finish"),
        ("outcome", "decide"),
        ("reports", "find_proposal"),
        ("reports", "write_first"),
    ):
        called |= actions_of_function(f"fedgrass.cloud.ending.{module}", function)
    assert actions(template.statements("ProcessingRole")) - OF_THE_PLATFORM == called


def test_the_job_touches_its_own_fleet_only(template: Template) -> None:
    role = template.statements("ProcessingRole")
    assert allows(role, "s3:PutObject", f"{BUCKET}/models/digits/1.1.0/model.json")
    assert not allows(role, "s3:PutObject", f"{BUCKET}/models/other/1.1.0/model.json")
    assert not allows(role, "s3:PutObject", f"{BUCKET}/updates/digits/000001/a/update.safetensors")
    assert allows(role, "s3:ListBucket", BUCKET, {"s3:prefix": "updates/digits/000001/"})
    assert not allows(role, "s3:ListBucket", BUCKET, {"s3:prefix": "updates/other/000001/"})
    assert not allows(role, "s3:ListBucket", BUCKET)
    assert allows(role, "iot:Publish", f"{IOT}:topic/fedgrass/digits/round")
    assert not allows(role, "iot:Publish", f"{IOT}:topic/fedgrass/other/round")
    assert not allows(role, "iot:Publish", f"{IOT}:topic/fedgrass/digits/devices/a/command")


def test_every_statement_without_a_resource_is_one_that_can_have_none(template: Template) -> None:
    wide = {
        (name, statement["Sid"])
        for name in template.of_type("AWS::IAM::Role")
        for statement in template.statements(name)
        if "*" in (statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]])
    }
    functions = ("AbortRound", "AggregationEnded", "CloseRound", "OpenRound", "RecordModel", "RecordReport")
    assert wide == {
        *((f"{function}Role", "DeploymentsAtLarge") for function in functions),  # ended by functions too
        ("ProcessingRole", "DeploymentsAtLarge"),  # Greengrass has no resource for them
        ("StateMachineRole", "Log"),  # log deliveries have none either
        ("ProcessingRole", "Metrics"),
        ("ProcessingRole", "ImageLogin"),
        ("ImageBuildRole", "Login"),
    }


def test_no_role_has_wildcard_actions(template: Template) -> None:
    for name in template.of_type("AWS::IAM::Role"):
        assert not any("*" in action for action in actions(template.statements(name))), name


def test_a_network_is_allowed_only_where_there_is_one() -> None:
    def network(template: Template) -> bool:
        return "ec2:CreateNetworkInterface" in actions(template.statements("ProcessingRole"))

    assert network(Template(Subnets="subnet-1", SecurityGroups="sg-1"))
    assert not network(Template())


def test_a_silo_writes_under_its_own_name_which_begins_with_its_account() -> None:
    template = Template(SiloAccounts="210987654321", SiloNames="210987654321-clinic,111111111111-other")
    role = template.resources["SiloRole"]
    [trust] = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"AWS": ["210987654321"]}
    trusted = [{**trust, "Resource": "*"}]
    account = {"aws:PrincipalAccount": "210987654321"}
    assert allows(trusted, "sts:AssumeRole", "r", {**account, "aws:RequestTag/silo": "210987654321-clinic"})
    assert not allows(trusted, "sts:AssumeRole", "r", {**account, "aws:RequestTag/silo": "111111111111-clinic"})
    assert not allows(trusted, "sts:AssumeRole", "r", account)
    for invented in ("210987654321-clinic2", "210987654321-x", "111111111111-other"):
        assert not allows(trusted, "sts:AssumeRole", "r", {**account, "aws:RequestTag/silo": invented})
    own = {"aws:PrincipalTag/silo": "210987654321-clinic", "aws:ResourceAccount": ACCOUNT}
    statements = template.statements("SiloRole")
    [mine] = one_key(statements, own, "210987654321-clinic")
    assert not allows(statements, "s3:PutObject", f"{BUCKET}/updates/digits/000001/a/update.safetensors", own)
    assert not allows(statements, "s3:GetObject", mine, own)
    assert allows(statements, "s3:GetObject", f"{BUCKET}/models/digits/1.0.0/model.json", own)
    assert "SiloRole" not in Template().resources
    unnamed = Template(SiloAccounts="210987654321").resources["SiloRole"]["AssumeRolePolicyDocument"]["Statement"][0]
    request = {**account, "aws:RequestTag/silo": "210987654321-clinic"}
    assert not allows([{**unnamed, "Resource": "*"}], "sts:AssumeRole", "r", request), "nobody, until some are named"


@pytest.mark.parametrize("function", ["StartAggregationRole", "OpenRoundRole", "AbortRoundRole"])
def test_a_function_starts_and_stops_jobs_of_its_own_fleet_only(template: Template, function: str) -> None:
    statements = template.statements(function)
    action = "sagemaker:CreateProcessingJob" if function.startswith("Start") else "sagemaker:StopProcessingJob"
    jobs = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:processing-job"
    assert allows(statements, action, f"{jobs}/{job_prefix('digits')}digits-000001-0123456789")
    assert not allows(statements, action, f"{jobs}/{job_prefix('other')}other-000001-0123456789")


@pytest.mark.parametrize("function", ["CloseRoundRole", "WatchFleetRole"])
def test_what_starts_executions_starts_those_of_its_own_fleet_only(template: Template, function: str) -> None:
    statements, machine = template.statements(function), f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:fedgrass-"
    assert not allows(statements, "states:StartExecution", f"{machine}other-round")
    assert not allows(
        statements,
        "states:StartExecution",
        "arn:aws:states:eu-central-1:999999999999:stateMachine:fedgrass-digits-round",
    )
    if function == "CloseRoundRole":  # which is made before the machine, so by its name
        assert allows(statements, "states:StartExecution", f"{machine}digits-round")
    starters = {
        name
        for name in template.of_type("AWS::IAM::Role")
        if "states:StartExecution" in actions(template.statements(name))
    }
    assert {"CloseRoundRole", "WatchFleetRole"} <= starters <= {"CloseRoundRole", "WatchFleetRole", "ScheduleRole"}


def test_a_device_by_claim_has_the_policy_of_any_other_and_its_hook_may_write_no_other_fleet_s(
    template: Template,
) -> None:
    statements = template.statements("ClaimDeviceRole")
    assert allows(statements, "iot:CreatePolicy", f"{IOT}:policy/{policy_name('digits', 'p-1')}")
    assert not allows(statements, "iot:CreatePolicy", f"{IOT}:policy/{policy_name('digits-p', '1')}")
    assert allows(statements, "iot:DescribeThing", f"{IOT}:thing/p-1")
    assert not allows(statements, "iot:DescribeThing", f"{IOT}:thing/q-1")
    body = json.loads(template.resources["ProvisioningTemplate"]["TemplateBody"])
    assert body["Resources"]["policy"]["Properties"] == {"PolicyName": {"Ref": "PolicyName"}}
    assert set(body["Resources"]["thing"]["OverrideSettings"].values()) == {"FAIL"}


def test_a_claim_certificate_is_good_for_provisioning_and_nothing_else(template: Template) -> None:
    statements = template.resources["ClaimPolicy"]["PolicyDocument"]["Statement"]
    own = template.resources["ProvisioningTemplate"]["TemplateName"]
    assert allows(statements, "iot:Publish", f"{IOT}:topic/$aws/provisioning-templates/{own}/provision/json")
    for topic in (
        "fedgrass/digits/devices/p-1/update",
        "$aws/things/p-1/jobs/get",
        "$aws/provisioning-templates/x/provision/json",
    ):
        assert not allows(statements, "iot:Publish", f"{IOT}:topic/{topic}")
        assert not allows(statements, "iot:Subscribe", f"{IOT}:topicfilter/{topic}")


def test_the_fleet_starts_a_silo_s_own_job_and_can_have_no_other_run_there() -> None:
    silo = Template(
        TEMPLATE.with_name("silo_account.yaml"),
        Silo="clinic",
        FleetAccount="210987654321",
        FleetRole="arn:aws:iam::210987654321:role/silo",
        FleetRegion=REGION,
        DataBucket="the-data",
        Image=f"210987654321.dkr.ecr.{REGION}.amazonaws.com/fedgrass/image@sha256:{'5' * 64}",
    )
    starter, job = (
        silo.statements("StarterRole"),
        f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/fedgrass-clinic-1",
    )
    assert actions(starter) == {
        "sagemaker:DescribeTrainingJob",
        "sagemaker:StopTrainingJob",
        "states:DescribeExecution",
        "states:ListExecutions",
        "states:StartExecution",
    }
    assert actions(starter) == actions_of_modules("fedgrass/silos.py", services=("stepfunctions", "sagemaker"))
    assert allows(starter, "sagemaker:StopTrainingJob", job, {})
    assert not allows(starter, "sagemaker:StopTrainingJob", job.replace("clinic", "other"), {})
    (trusted,) = silo.resources["StarterRole"]["AssumeRolePolicyDocument"]["Statement"]
    assert trusted["Principal"] == {"AWS": "arn:aws:iam::210987654321:root"}
    # Only the state machine may start jobs, and its definition leaves nothing open but the number of rounds.
    assert actions(silo.statements("JobRole")) >= {"sagemaker:CreateTrainingJob", "iam:PassRole"}
    definition = json.loads(silo.resources["Job"]["DefinitionString"])
    paths = re.findall(r'"([\w.]+\.\$)": "([^"]+)"', json.dumps(definition["States"]["Start"]))
    assert paths == [
        ("TrainingJobName.$", "States.Format('fedgrass-clinic-{}', $$.Execution.Name)"),
        ("rounds.$", "States.Format('{}', $.rounds)"),
    ]
    assert definition["States"]["Start"]["Parameters"]["AlgorithmSpecification"]["TrainingImage"].endswith("5" * 64)
    training = silo.statements("TrainingRole")
    assert not allows(
        training, "s3:PutObject", "arn:aws:s3:::the-data/fedgrass/data.csv", {"aws:ResourceAccount": ACCOUNT}
    )
    assert not allows(
        training, "s3:GetObject", "arn:aws:s3:::other/fedgrass/data.csv", {"aws:ResourceAccount": ACCOUNT}
    )


def test_an_endpoint_is_made_only_where_it_is_asked_for_and_reads_archives_of_models_only() -> None:
    assert not {"Endpoint", "ServingRole", "ServedModel"} & Template().resources.keys()
    template = Template(ServedVersion="1.7.0")
    serving = template.statements("ServingRole")
    assert actions(serving) - OF_THE_PLATFORM == {"s3:GetObject"}
    assert allows(serving, "s3:GetObject", f"{BUCKET}/models/digits/1.7.0/model.tar.gz", {})
    for key in (
        "models/digits/1.7.0/model.json",
        "updates/digits/000001/a/update.safetensors",
        "models/other/1.0.0/model.tar.gz",
    ):
        assert not allows(serving, "s3:GetObject", f"{BUCKET}/{key}", {})
    [variant] = template.resources["ServedModelMachines"]["ProductionVariants"]
    assert "InstanceType" not in variant
    assert template.resources["ServedModel"]["EnableNetworkIsolation"] in (False, "false")
    [variant] = Template(ServedVersion="1.7.0", ServingInstanceType="ml.m5.large").resources["ServedModelMachines"][
        "ProductionVariants"
    ]
    assert "ServerlessConfig" not in variant


HELPER, OTHERS_HELPER = "210987654321-audit", "210987654321-other"


def test_a_helper_of_another_account_reads_what_it_is_asked_and_writes_its_answer_and_nothing_else() -> None:
    template = Template(HelperAccounts="210987654321", HelperNames=f"{HELPER},111111111111-other")
    [trust] = template.resources["HelperRole"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"AWS": ["210987654321"]}
    trusted, account = [{**trust, "Resource": "*"}], {"aws:PrincipalAccount": "210987654321"}
    assert allows(trusted, "sts:AssumeRole", "r", {**account, "aws:RequestTag/helper": HELPER})
    assert not allows(trusted, "sts:AssumeRole", "r", account)
    assert not allows(trusted, "sts:AssumeRole", "r", {**account, "aws:RequestTag/silo": HELPER})
    for invented in (OTHERS_HELPER, "111111111111-other", "press-1", "*"):
        assert not allows(trusted, "sts:AssumeRole", "r", {**account, "aws:RequestTag/helper": invented})
    statements = template.statements("HelperRole")
    own = {"aws:PrincipalTag/helper": HELPER, "aws:ResourceAccount": ACCOUNT}
    assert actions(statements) == {
        "iot:GetRetainedMessage",
        "s3:AbortMultipartUpload",
        "s3:GetObject",
        "s3:PutObject",
    }
    assert allows(statements, "s3:GetObject", f"{BUCKET}/{sum_request_key('digits', 7, HELPER)}", own)
    answer = command_key("digits", HELPER, sum_command(7, "ab" * 32))
    assert allows(statements, "s3:PutObject", f"{BUCKET}/{answer}", own)
    for key in (
        sum_request_key("digits", 7, OTHERS_HELPER),
        sum_request_key("other", 7, HELPER),
        "models/digits/1.0.0/model.json",
        "updates/digits/000001/a/update.safetensors",
        "reports/digits/000001/updates.json",
        answer,
    ):
        assert not allows(statements, "s3:GetObject", f"{BUCKET}/{key}", own), key
    for key in (
        command_key("digits", OTHERS_HELPER, sum_command(7, "ab" * 32)),
        command_key("digits", HELPER, "c1"),
        f"updates/digits/000007/{HELPER}/update.safetensors",
        sum_request_key("digits", 7, HELPER),
        "models/digits/1.0.0/model.json",
    ):
        assert not allows(statements, "s3:PutObject", f"{BUCKET}/{key}", own), key
    elsewhere = {**own, "aws:ResourceAccount": "999999999999"}
    assert not allows(statements, "s3:PutObject", f"{BUCKET}/{answer}", elsewhere)
    assert not {"HelperRole", "WakeHelpersEvent", "WakeHelpersRole"} & Template().resources.keys()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_helpers_buses_are_told_that_the_fleet_s_own_aggregator_has_begun_and_no_other_bus_is(count: int) -> None:
    buses = [f"arn:aws:events:{REGION}:{i}10987654321:event-bus/fedgrass-helper-audit" for i in range(count)]
    template = Template(HelperAccounts="210987654321", HelperBuses=",".join(buses))
    rule = template.resources["WakeHelpersEvent"]
    assert [target["Arn"] for target in rule["Targets"]] == buses
    assert rule["EventPattern"]["detail"]["ProcessingJobName"] == [{"prefix": job_prefix("digits")}]
    statements = template.statements("WakeHelpersRole")
    assert actions(statements) == {"events:PutEvents"}
    assert all(allows(statements, "events:PutEvents", bus) for bus in buses)
    assert not allows(statements, "events:PutEvents", f"{buses[0]}2")
    pattern = template.document["Parameters"]["HelperBuses"]["AllowedPattern"]
    assert re.fullmatch(pattern, ",".join(buses))
    assert not re.fullmatch(pattern, ",".join([*buses, ""]))
    assert not re.fullmatch(pattern, ",".join([buses[0]] * 6))


def test_a_helper_s_account_gives_nobody_but_its_own_job_the_key_and_the_job_changes_nothing_that_is_kept() -> None:
    helper = Template(
        TEMPLATE.with_name("helper_account.yaml"),
        Helper="audit",
        FleetAccount="210987654321",
        FleetRole="arn:aws:iam::210987654321:role/helper",
        FleetRegion=REGION,
        Image=f"210987654321.dkr.ecr.{REGION}.amazonaws.com/fedgrass/image@sha256:{'5' * 64}",
    )
    job = helper.statements("JobRole")
    kept = {"dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query"}
    assert actions(job) - OF_THE_PLATFORM == {*kept, "sts:AssumeRole", "sts:TagSession"}
    assert actions_of_modules("fedgrass/cloud/helper/table.py", services=("dynamodb",)) <= kept
    assert not allows(job, "sts:AssumeRole", "arn:aws:iam::210987654321:role/other")
    administration, own = helper.resources["SecretKey"]["KeyPolicy"]["Statement"]
    assert not {"kms:Decrypt", "kms:CreateGrant", "kms:Encrypt", "kms:ReEncryptFrom", "kms:*"} & set(
        administration["Action"]
    )
    assert own["Principal"] == {"AWS": helper.resolve({"Fn::GetAtt": ["JobRole", "Arn"]})}
    context = {"kms:EncryptionContext:fedgrass:fleet": "digits"}
    for name, allowed in ((f"{ACCOUNT}-audit", True), (f"{ACCOUNT}-other", False)):
        given = {**context, "kms:EncryptionContext:fedgrass:helper": name}
        assert allows([own], "kms:Decrypt", "*", given) is allowed
    # The fleet's account puts events on the bus; only SageMaker's own, of its aggregator's beginning, start anything.
    statement = helper.resources["BusPolicy"]["Statement"]
    assert (statement["Principal"], statement["Action"]) == (
        {"AWS": "arn:aws:iam::210987654321:root"},
        "events:PutEvents",
    )
    pattern = helper.resources["WakeRule"]["EventPattern"]
    assert (pattern["account"], pattern["source"]) == (["210987654321"], ["aws.sagemaker"])
    assert pattern["detail"]["ProcessingJobName"] == [{"prefix": job_prefix("digits")}]
    principals = [
        trust["Principal"]
        for role in helper.of_type("AWS::IAM::Role").values()
        for trust in role["AssumeRolePolicyDocument"]["Statement"]
    ]
    assert sorted(next(iter(one.values())) for one in principals) == [
        "events.amazonaws.com",
        "sagemaker.amazonaws.com",
        "states.amazonaws.com",
    ]
    definition = json.loads(helper.resources["Machine"]["DefinitionString"])
    # Whoever wakes it chooses nothing: no part of the input is in the job.
    assert re.findall(r'"(\w+\.\$)"', json.dumps(definition)) == ["ProcessingJobName.$"]
    assert "$." not in definition["States"]["Start"]["Parameters"]["ProcessingJobName.$"]
    assert "ScheduleRule" not in helper.resources
