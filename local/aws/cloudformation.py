"""CloudFormation resource types that moto skips while it reports CREATE_COMPLETE.

Each is made through the service's own API at the endpoint; moto resolves the template around them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moto.cloudformation.exceptions import UnformattedGetAttTemplateException
from moto.core.common_models import CloudFormationModel

from local.aws.account import arn

Connect = Callable[[str], Any]
"""Returns the boto3 client of a service."""

Properties = dict[str, Any]


@dataclass(frozen=True)
class ResourceType:
    """How one type is made and removed.

    Attributes
    ----------
    name_property
        The property that names the resource, and what ``Ref`` returns.
    put
        Creates the resource, or updates it if the flag says that it exists.
    arn
        What ``Fn::GetAtt`` returns for ``Arn``, if the type has it.
    """

    cloudformation_type: str
    name_property: str
    put: Callable[[Connect, str, Properties, bool], None]
    delete: Callable[[Connect, str], None]
    arn: Callable[[str], str] | None = None


def register(connect: Connect) -> None:
    """Make the types known to moto; must happen before it reads its first template."""
    for resource_type in _TYPES:
        _model(resource_type, connect)


def _model(kind: ResourceType, connect: Connect) -> type[Any]:
    """Return a class as moto wants one for each type: a direct subclass, found by that."""

    class Resource(CloudFormationModel):  # type: ignore[misc] # moto is not typed here
        def __init__(self, name: str) -> None:
            self.physical_resource_id = name

        @staticmethod
        def cloudformation_name_type() -> str:
            return kind.name_property

        @staticmethod
        def cloudformation_type() -> str:
            return kind.cloudformation_type

        @classmethod
        def has_cfn_attr(cls, attr: str) -> bool:
            return attr == "Arn" and kind.arn is not None

        def get_cfn_attribute(self, attribute_name: str) -> str:
            if attribute_name == "Arn" and kind.arn is not None:
                return kind.arn(self.physical_resource_id)
            raise UnformattedGetAttTemplateException

        @classmethod
        def create_from_cloudformation_json(
            cls, resource_name: str, cloudformation_json: Any, *_: str, **__: str
        ) -> Resource:
            kind.put(connect, resource_name, cloudformation_json["Properties"], False)
            return cls(resource_name)

        @classmethod
        def update_from_cloudformation_json(
            cls, original_resource: Any, new_resource_name: str, cloudformation_json: Any, *_: str, **__: str
        ) -> Resource:
            old = original_resource.physical_resource_id
            same = new_resource_name == old or kind.name_property not in cloudformation_json["Properties"]
            kind.put(connect, old if same else new_resource_name, cloudformation_json["Properties"], same)
            if same:
                return cls(old)
            kind.delete(connect, old)
            return cls(new_resource_name)

        @classmethod
        def delete_from_cloudformation_json(cls, resource_name: str, *_: Any) -> None:
            kind.delete(connect, resource_name)

    return Resource


def _put_thing_group(connect: Connect, name: str, properties: Properties, exists: bool) -> None:
    given = _camel(
        {key: value for key, value in properties.items() if key in {"ParentGroupName", "ThingGroupProperties"}}
    )
    if not exists:
        connect("iot").create_thing_group(thingGroupName=name, **given)
    elif "thingGroupProperties" in given:
        connect("iot").update_thing_group(thingGroupName=name, thingGroupProperties=given["thingGroupProperties"])


def _put_topic_rule(connect: Connect, name: str, properties: Properties, exists: bool) -> None:
    iot = connect("iot")
    put = iot.replace_topic_rule if exists else iot.create_topic_rule
    put(ruleName=_rule_name(name), topicRulePayload=_camel(properties["TopicRulePayload"]))


def _put_bucket_policy(connect: Connect, name: str, properties: Properties, _exists: bool) -> None:
    connect("s3").put_bucket_policy(Bucket=name, Policy=json.dumps(properties["PolicyDocument"]))


def _put_alarm(connect: Connect, name: str, properties: Properties, _exists: bool) -> None:
    numbers = {"Threshold": float, "Period": int, "EvaluationPeriods": int, "DatapointsToAlarm": int}
    typed = {key: numbers.get(key, lambda value: value)(value) for key, value in properties.items()}
    connect("cloudwatch").put_metric_alarm(**{**typed, "AlarmName": name})


def _put_model_package_group(connect: Connect, name: str, properties: Properties, exists: bool) -> None:
    if not exists:
        connect("sagemaker").create_model_package_group(
            ModelPackageGroupName=name,
            ModelPackageGroupDescription=properties.get("ModelPackageGroupDescription", ""),
        )


def _rule_name(name: str) -> str:
    return re.sub(r"\W", "_", name)  # the names that moto makes up have hyphens, which rules may not


def _camel(value: Any) -> Any:
    """Spell CloudFormation's properties as the IoT API does."""
    if isinstance(value, dict):
        return {key[:1].lower() + key[1:]: _camel(item) for key, item in value.items()}
    return [_camel(item) for item in value] if isinstance(value, list) else value


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
        lambda connect, name: connect("iot").delete_topic_rule(ruleName=_rule_name(name)),
        lambda name: arn("iot", f"rule/{_rule_name(name)}"),
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
        lambda connect, name: connect("sagemaker").delete_model_package_group(ModelPackageGroupName=name),
        lambda name: arn("sagemaker", f"model-package-group/{name}"),
    ),
)
