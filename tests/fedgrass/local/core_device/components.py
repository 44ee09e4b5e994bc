"""Small components that the tests deploy: real processes that use the real SDKs."""

from __future__ import annotations

import sys
from typing import Any

# Reports what happens to it as lines of its log, and does what it is told by messages on `tell/<name>`.
ECHO = """
import json, os, signal, sys, threading
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc.model import BinaryMessage, PublishMessage

thing = os.environ["AWS_IOT_THING_NAME"]
ipc = GreengrassCoreIPCClientV2()
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())

def say(*words):
    print(*words, flush=True)

def on_told(event):
    say("told", event.message.topic_name, event.message.payload.decode())
    ipc.publish_to_iot_core_async(topic_name=f"said/{thing}", qos="1", payload=event.message.payload.upper())

def on_update(event):
    if event.pre_update_event:
        say("asked", event.pre_update_event.deployment_id)
        ipc.defer_component_update_async(
            deployment_id=event.pre_update_event.deployment_id, recheck_after_ms=int(os.environ.get("DEFER_MS", "0")))
        os.environ["DEFER_MS"] = "0"
    else:
        say("updated", event.post_update_event.deployment_id)

ipc.subscribe_to_component_updates(on_stream_event=on_update)
ipc.subscribe_to_iot_core(topic_name=f"tell/{thing}", qos="1", on_stream_event=on_told)
say("ready", json.dumps(ipc.get_configuration().value.get("settings")))
stopping.wait()
say("bye")
"""

ACCESS = {
    "aws.greengrass.ipc.mqttproxy": {"echo:1": {"operations": ["*"], "resources": ["tell/+", "said/+"]}},
    "aws.greengrass.ipc.pubsub": {"echo:2": {"operations": ["*"], "resources": ["*"]}},
}


def python(file: str) -> str:
    """Return the script that runs a file of the component's archive with this interpreter."""
    return f"exec {sys.executable} {{artifacts:decompressedPath}}/code/{file}"


def echo(**settings: Any) -> dict[str, Any]:
    """Return the arguments of ``Fleet.publish`` for the echo component."""
    return {
        "lifecycle": {"run": python("echo.py")},
        "files": {"echo.py": ECHO},
        "configuration": {"accessControl": ACCESS, "settings": settings},
    }
