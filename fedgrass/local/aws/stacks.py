"""Stacks where moto is kinder than CloudFormation, or does less: values of parameters, conditions, what an update touches.

moto takes any value of a parameter, leaves None in a list for an entry that is not there, takes only "Retain" for what a deleted
stack leaves, knows no previous value of a parameter that had its default, changes resources whose condition does not hold and
keeps those whose condition holds no more, and leaves alone what refers to a resource that was replaced.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError
from moto.cloudformation.models import CloudFormationBackend, Stack
from moto.cloudformation.parsing import ResourceMap
from moto.cloudformation.utils import yaml_tag_constructor

from fedgrass.local.aws.overrides import override

_FOLLOWS = ("AWS::SageMaker::Model", "AWS::SageMaker::EndpointConfig", "AWS::SageMaker::Endpoint")
"""Types that follow a parameter within a text, and what they refer to, in their order; moto changes neither."""


def repair() -> None:
    """Have moto do as CloudFormation does; it must happen before moto reads its first template."""
    delete, load, differences, update = (
        ResourceMap.delete,
        ResourceMap.load_parameters,
        ResourceMap.build_resource_diff,
        ResourceMap.update,
    )

    def delete_but_retained(resources: ResourceMap) -> None:
        # moto knows "Retain" only. The two differ when a creation is rolled back, which moto does not do.
        for described in resources._resource_json_map.values():
            if described.get("DeletionPolicy") == "RetainExceptOnCreate":
                described["DeletionPolicy"] = "Retain"
        delete(resources)

    def load_checked(resources: ResourceMap) -> None:
        declared = resources._template.get("Parameters", {})
        for name, value in resources.input_parameters.items():
            if name not in declared:
                raise ValidationError(message=f"Parameters: [{name}] do not exist in the template")
            check_value(name, str(value), declared[name])
        load(resources)

    def differences_of_what_is_there(
        resources: ResourceMap, template: dict[str, Any], parameters: dict[str, Any] | None = None
    ) -> dict[str, list[str]]:
        return _differences(resources, template, parameters, differences(resources, template, parameters))

    def update_and_forget(
        resources: ResourceMap, template: dict[str, Any], parameters: dict[str, Any] | None = None
    ) -> None:
        update(resources, template, parameters)
        for name in vars(resources)["fedgrass_gone"]:
            resources._parsed_resources.pop(name, None)

    _parse_templates_in_c()
    _leave_nothing_out_of_lists()
    override(ResourceMap, "delete", delete_but_retained)
    override(ResourceMap, "load_parameters", load_checked)
    override(ResourceMap, "build_resource_diff", differences_of_what_is_there)
    override(ResourceMap, "update", update_and_forget)
    override(CloudFormationBackend, "_resolve_update_parameters", _previous_or_default)


def _leave_nothing_out_of_lists() -> None:
    """Have AWS::NoValue take an entry out of its list: moto leaves None there, at which services stumble."""
    clean = parsing.clean_json

    def clean_of_nothing(described: Any, resources: ResourceMap) -> Any:
        found = clean(described, resources)
        return [one for one in found if one is not None] if isinstance(found, list) else found

    # Under the name by which it calls itself.
    override(parsing, "clean_json", clean_of_nothing)


def _parse_templates_in_c() -> None:
    """Have moto read YAML with libyaml, where PyYAML comes with it: it reads a template several times for each stack."""
    quick = getattr(yaml, "CLoader", None)
    if quick is not None:
        yaml.add_multi_constructor("", yaml_tag_constructor, Loader=quick)
        override(yaml, "Loader", quick)


def _differences(
    resources: ResourceMap, template: dict[str, Any], parameters: dict[str, Any] | None, found: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Return what an update adds, modifies and removes, by what moto ``found`` and the conditions after it."""
    # What exists now, whatever the old template says: a resource whose condition did not hold was never made.
    there = {name for name, made in resources._parsed_resources.items() if made is not None}
    holds = _conditions(resources, template, parameters)
    described = template["Resources"]
    known = {
        name: holds(described[name].get("Condition")) for name in described if name in resources._resource_json_map
    }
    gone = [name for name, wanted in known.items() if name in there and not wanted]
    absent = [name for name, wanted in known.items() if name not in there and wanted]
    modified = [name for name in found["Modify"] if name in there and name not in gone]
    before = resources.input_parameters
    # Parameters as Fn::Sub spells them within a text.
    changed = [f"${{{name}}}" for name, value in (parameters or {}).items() if before.get(name) != value]
    for name in _following(described, [*modified, *changed]):
        modified += [name] if name in there and name not in (*gone, *modified) else []
    vars(resources)["fedgrass_gone"] = gone
    return {"Add": [*found["Add"], *absent], "Modify": modified, "Remove": [*found["Remove"], *gone]}


def check_value(name: str, value: str, declared: Mapping[str, Any]) -> None:
    """Check a parameter's value as CloudFormation does.

    Parameters
    ----------
    name
        The parameter's name.
    value
        The value, as text.
    declared
        The parameter in the template.

    Raises
    ------
    ValidationError
        If it may not have the value, in CloudFormation's words.
    """
    said = declared.get("ConstraintDescription")
    pattern, allowed = declared.get("AllowedPattern"), declared.get("AllowedValues")
    if pattern is not None and re.fullmatch(pattern, value) is None:
        raise _refused(name, said or f"must match pattern {pattern}")
    if allowed is not None and value not in map(str, allowed):
        raise _refused(name, said or f"must be one of [{', '.join(map(str, allowed))}]")
    if not int(declared.get("MinLength", 0)) <= len(value) <= int(declared.get("MaxLength", len(value))):
        raise _refused(
            name, said or f"must have {declared.get('MinLength', 0)} to {declared.get('MaxLength', 'any')} characters"
        )
    if declared["Type"] == "Number":
        if re.fullmatch(r"-?\d+(\.\d+)?", value) is None:
            raise ValidationError(message=f"Parameter '{name}' must be a number.")
        low, high = declared.get("MinValue"), declared.get("MaxValue")
        if (low is not None and float(value) < float(low)) or (high is not None and float(value) > float(high)):
            raise _refused(name, said or f"must be from {low} to {high}")


def _refused(name: str, constraint: str) -> ValidationError:
    return ValidationError(message=f"Parameter '{name}' failed to satisfy constraint: {constraint}")


def _conditions(
    resources: ResourceMap, template: dict[str, Any], parameters: dict[str, Any] | None
) -> Callable[[str | None], bool]:
    """Return what tells whether a condition holds after the update."""
    # Asked of a copy: the conditions of the stack as it is are still needed for what is removed.
    after = copy.copy(resources)
    after._template = template
    after._parsed_resources = dict(resources._parsed_resources)
    after.resolved_parameters = dict(resources.resolved_parameters)
    after.input_parameters = parameters or resources.input_parameters
    after.load_mapping()
    after.load_parameters()
    after.load_conditions()
    return lambda name: name is None or after.lazy_condition_map[name]


def _following(described: Mapping[str, Mapping[str, object]], changed: list[str]) -> list[str]:
    """Return the resources that follow what has changed: resources by name, parameters as they stand in a text."""
    # A resource is referred to by its name as a JSON text, in Ref and in GetAtt; a parameter may stand within a
    # longer one.
    marks, found = [text if text.startswith("$") else f'"{text}"' for text in changed], []
    # In the order in which they depend on each other: what follows a model may be followed by an endpoint.
    for kind in _FOLLOWS:
        for name, resource in described.items():
            if resource["Type"] == kind and any(mark in json.dumps(resource) for mark in marks):
                found.append(name)
                marks.append(f'"{name}"')
    return found


def _previous_or_default(_: object, instance: Stack, incoming_params: list[dict[str, str]]) -> dict[str, str]:
    values = {}
    for one in incoming_params:
        name = one["ParameterKey"]
        if not one.get("UsePreviousValue"):
            values[name] = one["ParameterValue"]
        elif name in instance.parameters:
            values[name] = instance.parameters[name]
        elif name not in instance.stack_parameters:  # what had its default keeps it by not being given
            raise ValidationError(message=f"Parameter {name}: UsePreviousValue, but the stack has no such parameter")
    return values
