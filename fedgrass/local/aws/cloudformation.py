"""CloudFormation resource types that moto skips while it reports CREATE_COMPLETE, or handles wrongly.

Each is made through the service's own API at the endpoint; moto resolves the template around them. (moto cannot delete
a model package group by its API: that one is taken out of its store.)
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import moto.cloudformation.parsing  # noqa: F401 - of two classes for one type, moto takes the later
from botocore.exceptions import ClientError
from moto.cloudformation.exceptions import UnformattedGetAttTemplateException, ValidationError
from moto.core.common_models import CloudFormationModel
from moto.sagemaker.models import sagemaker_backends
from tenacity import Retrying, retry_if_result, wait_fixed

from fedgrass.local.aws import stacks
from fedgrass.local.aws.account import ACCOUNT, REGION, arn

Connect = Callable[[str], Any]
"""Returns the boto3 client of a service."""

Properties = dict[str, Any]


@dataclass(frozen=True)
class ResourceType:
    """How one type is made and removed.

    Attributes
    ----------
    name_property
        The property that names the resource.
    put
        Given a name, properties and the resource's id if it exists: creates or updates it, and returns its id, which
        is what ``Ref`` returns.
    delete
        Given the id.
    arn
        From the id, what ``Fn::GetAtt`` returns for ``arn_attribute``; None if the type has no ARN.
    """

    cloudformation_type: str
    name_property: str
    put: Callable[[Connect, str, Properties, str | None], str]
    delete: Callable[[Connect, str], object]
    arn: Callable[[str], str] | None = None
    arn_attribute: str = "Arn"

    def attribute(self, identifier: str, name: str) -> str:
        """Return what ``Fn::GetAtt`` gives of a resource."""
        if name == self.arn_attribute and self.arn is not None:
            return self.arn(identifier)
        if name == "Name":
            return identifier.rpartition(":")[2]
        # What moto catches, to name the resource and the attribute in the error.
        raise UnformattedGetAttTemplateException

    def update(self, connect: Connect, old: str, new_name: str, properties: Properties) -> str:
        """Change a resource, or replace it if it is given another name.

        Parameters
        ----------
        connect
            Returns a client of a service.
        old
            The resource's identifier.
        new_name
            What a new resource is called if the template does not say.
        properties
            Of the resource, from the template.

        Returns
        -------
        str
            The identifier of the resource that there is now.
        """
        name = properties.get(self.name_property)
        if name is None or name == self.attribute(old, "Name"):
            return self.put(connect, old, properties, old)
        # First the new one: CloudFormation deletes what was replaced when all else is done.
        new = self.put(connect, new_name, properties, None)
        self.delete(connect, old)
        return new

    def remove(self, connect: Connect, identifier: str) -> None:
        """Delete a resource; one that is gone is deleted."""
        try:
            self.delete(connect, identifier)
        except ClientError as error:
            if not error.response["Error"]["Code"].startswith(("NoSuch", "ResourceNotFound")):
                raise


def register(connect: Connect) -> list[type[CloudFormationModel]]:
    """Make the types known to moto, which finds them for as long as the result is kept.

    It must happen before moto reads its first template.
    """
    stacks.repair()
    kept = cache(connect)
    return [_model(kind, kept) for kind in _TYPES]


def _model(kind: ResourceType, connect: Connect) -> type[CloudFormationModel]:
    """Return a class as moto wants one for each type: a direct subclass, found by that."""

    class Resource(CloudFormationModel):
        def __init__(self, identifier: str) -> None:
            self.physical_resource_id = identifier

        @staticmethod
        def cloudformation_name_type() -> str:
            return kind.name_property

        @staticmethod
        def cloudformation_type() -> str:
            return kind.cloudformation_type

        @classmethod
        def has_cfn_attr(cls, attr: str) -> bool:
            return attr == "Name" or (attr == kind.arn_attribute and kind.arn is not None)

        def get_cfn_attribute(self, attribute_name: str) -> str:
            return kind.attribute(self.physical_resource_id, attribute_name)

        @classmethod
        def create_from_cloudformation_json(
            cls, resource_name: str, cloudformation_json: Properties, *_: str, **__: str
        ) -> Resource:
            properties = cloudformation_json["Properties"]
            return cls(kind.put(connect, properties.get(kind.name_property, resource_name), properties, None))

        @classmethod
        def update_from_cloudformation_json(
            cls,
            original_resource: Resource,
            new_resource_name: str,
            cloudformation_json: Properties,
            *_: str,
            **__: str,
        ) -> Resource:
            old: str = original_resource.physical_resource_id
            return cls(kind.update(connect, old, new_resource_name, cloudformation_json["Properties"]))

        @classmethod
        def delete_from_cloudformation_json(cls, resource_name: str, *_: object) -> None:
            kind.remove(connect, resource_name)

    return Resource


def _put_thing_group(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    # A group's parent is settled when it is made: UpdateThingGroup does not take one.
    allowed = ("thingGroupProperties",) if existing else ("thingGroupProperties", "parentGroupName")
    given = {key: value for key, value in _camel(properties).items() if key in allowed}
    iot = connect("iot")
    if existing is None:
        with contextlib.suppress(iot.exceptions.ResourceNotFoundException):
            iot.describe_thing_group(thingGroupName=name)
            raise ValidationError(message=f"{name} already exists")  # CreateThingGroup itself takes an equal one
        iot.create_thing_group(thingGroupName=name, **given)
    elif given:
        iot.update_thing_group(thingGroupName=name, **given)
    return name


def _put_topic_rule(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    iot = connect("iot")
    name = re.sub(r"\W", "_", name)  # the names that moto makes up have hyphens, which rules may not
    put = iot.replace_topic_rule if existing else iot.create_topic_rule
    put(ruleName=name, topicRulePayload=_camel(properties["TopicRulePayload"]))
    return name


def _put_role_alias(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    given: Properties = {"roleAlias": name, "roleArn": properties["RoleArn"]}
    if "CredentialDurationSeconds" in properties:
        given["credentialDurationSeconds"] = int(properties["CredentialDurationSeconds"])
    iot = connect("iot")
    put = iot.update_role_alias if existing else iot.create_role_alias
    put(**given)
    return name


def _put_bucket_policy(connect: Connect, name: str, properties: Properties, _existing: str | None) -> str:
    connect("s3").put_bucket_policy(Bucket=name, Policy=json.dumps(properties["PolicyDocument"]))
    return name


def _put_alarm(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    # A template's parameters are text even where they stand for a number, and boto3 takes numbers only.
    numbers: dict[str, type] = {
        "Threshold": float,
        "Period": int,
        "EvaluationPeriods": int,
        "DatapointsToAlarm": int,
    }
    typed = {key: numbers[key](value) if key in numbers else value for key, value in properties.items()}
    if existing is None and connect("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]:
        raise ValidationError(message=f"{name} already exists")  # PutMetricAlarm itself would change it
    connect("cloudwatch").put_metric_alarm(**{**typed, "AlarmName": name})
    return name


def _put_model_package_group(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    # SageMaker has no call that changes a group.
    if existing is None:
        connect("sagemaker").create_model_package_group(
            ModelPackageGroupName=name,
            ModelPackageGroupDescription=properties.get("ModelPackageGroupDescription", ""),
            Tags=properties.get("Tags", []),
        )
    return name


def _put_model(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    if existing is not None:  # every change of a model is another model
        connect("sagemaker").delete_model(ModelName=existing)
    given = {key: properties[key] for key in ("ExecutionRoleArn", "PrimaryContainer") if key in properties}
    connect("sagemaker").create_model(ModelName=name, **given)
    return name


def _put_endpoint_config(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    if existing is not None:
        # As with models: no call changes one, so it is made again under its name.
        connect("sagemaker").delete_endpoint_config(EndpointConfigName=existing)
    numbers = {"InitialInstanceCount": int, "InitialVariantWeight": float}
    variants = [
        {key: numbers[key](value) if key in numbers else value for key, value in variant.items()}
        for variant in properties["ProductionVariants"]
    ]
    # The texts of parameters once more, one level down.
    for serverless in [variant["ServerlessConfig"] for variant in variants if "ServerlessConfig" in variant]:
        serverless.update({key: int(value) for key, value in serverless.items()})
    connect("sagemaker").create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    return name


def _put_endpoint(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    sagemaker = connect("sagemaker")
    put = sagemaker.update_endpoint if existing else sagemaker.create_endpoint
    put(EndpointName=name, EndpointConfigName=properties["EndpointConfigName"])
    # CloudFormation reports an endpoint as created when it is in service, not when it was asked for.
    wait = Retrying(
        retry=retry_if_result(lambda found: found["EndpointStatus"] in {"Creating", "Updating"}), wait=wait_fixed(0.1)
    )
    found = wait(sagemaker.describe_endpoint, EndpointName=name)
    if found["EndpointStatus"] != "InService":
        raise ValidationError(message=f"Endpoint {name}: {found['FailureReason']}")
    return name


def _put_event_invoke_config(connect: Connect, _name: str, properties: Properties, _existing: str | None) -> str:
    given = {key: properties[key] for key in ("FunctionName", "DestinationConfig") if key in properties}
    connect("lambda").put_function_event_invoke_config(**given)
    return str(properties["FunctionName"])


def _delete_event_invoke_config(connect: Connect, function: str) -> None:
    connect("lambda").delete_function_event_invoke_config(FunctionName=function)


def _put_state_machine(connect: Connect, name: str, properties: Properties, existing: str | None) -> str:
    if "DefinitionS3Location" in properties:
        location = properties["DefinitionS3Location"]
        stored = connect("s3").get_object(Bucket=location["Bucket"], Key=location["Key"])
        definition = stored["Body"].read().decode()
    else:
        definition = properties.get("DefinitionString") or json.dumps(properties["Definition"])
    # In the text and before it is parsed, as CloudFormation does: a value may stand within a string.
    for key, value in properties.get("DefinitionSubstitutions", {}).items():
        definition = definition.replace(f"${{{key}}}", str(value))
    step_functions = connect("stepfunctions")
    if existing:
        step_functions.update_state_machine(
            stateMachineArn=existing, definition=definition, roleArn=properties["RoleArn"]
        )
        return existing
    created = step_functions.create_state_machine(
        name=name,
        definition=definition,
        roleArn=properties["RoleArn"],
        type=properties.get("StateMachineType", "STANDARD"),
    )
    return str(created["stateMachineArn"])


def _camel(value: Any) -> Any:
    """Spell CloudFormation's properties as the IoT API does."""
    if isinstance(value, dict):
        return {key[:1].lower() + key[1:]: _camel(item) for key, item in value.items()}
    return [_camel(item) for item in value] if isinstance(value, list) else value


def _serving(kind: str, put: Callable[[Connect, str, Properties, str | None], str], delete: str) -> ResourceType:
    """Return a type of SageMaker's hosting, known by its name; ``delete`` is the client's method."""
    name_property = f"{kind}Name"
    return ResourceType(
        f"AWS::SageMaker::{kind}",
        name_property,
        put,
        lambda connect, name: getattr(connect("sagemaker"), delete)(**{name_property: name}),
        lambda name: name,
        arn_attribute=name_property,
    )


_TYPES = (
    ResourceType(
        "AWS::IoT::ThingGroup",
        "ThingGroupName",
        _put_thing_group,
        lambda connect, name: connect("iot").delete_thing_group(thingGroupName=name),
        lambda name: arn("iot", f"thinggroup/{name}"),
    ),
    ResourceType(
        "AWS::IoT::TopicRule",
        "RuleName",
        _put_topic_rule,
        lambda connect, name: connect("iot").delete_topic_rule(ruleName=name),
        lambda name: arn("iot", f"rule/{name}"),
    ),
    ResourceType(
        "AWS::S3::BucketPolicy",
        "Bucket",
        _put_bucket_policy,
        lambda connect, name: connect("s3").delete_bucket_policy(Bucket=name),
    ),
    ResourceType(
        "AWS::CloudWatch::Alarm",
        "AlarmName",
        _put_alarm,
        lambda connect, name: connect("cloudwatch").delete_alarms(AlarmNames=[name]),
        lambda name: arn("cloudwatch", f"alarm:{name}"),
    ),
    ResourceType(
        "AWS::SageMaker::ModelPackageGroup",
        "ModelPackageGroupName",
        _put_model_package_group,
        lambda _connect, name: sagemaker_backends[ACCOUNT][REGION].model_package_groups.pop(name, None),
        lambda name: arn("sagemaker", f"model-package-group/{name}"),
        arn_attribute="ModelPackageGroupArn",
    ),
    # moto's own run nothing
    _serving("Model", _put_model, "delete_model"),
    _serving("EndpointConfig", _put_endpoint_config, "delete_endpoint_config"),
    _serving("Endpoint", _put_endpoint, "delete_endpoint"),
    ResourceType(
        "AWS::Lambda::EventInvokeConfig", "FunctionName", _put_event_invoke_config, _delete_event_invoke_config
    ),
    # moto's own cannot be deleted if its name comes from an intrinsic function
    ResourceType(
        "AWS::IoT::RoleAlias",
        "RoleAlias",
        _put_role_alias,
        lambda connect, name: connect("iot").delete_role_alias(roleAlias=name),
        lambda name: arn("iot", f"rolealias/{name}"),
        arn_attribute="RoleAliasArn",
    ),
    # moto's own puts it into a backend that runs nothing, and takes its definition as one string only
    ResourceType(
        "AWS::StepFunctions::StateMachine",
        "StateMachineName",
        _put_state_machine,
        lambda connect, machine: connect("stepfunctions").delete_state_machine(stateMachineArn=machine),
        lambda machine: machine,
    ),
)
