"""The endpoint runs commands for those who have this start's keys, and for no web page in a developer's browser."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from fedgrass.local.aws.account import Keys
from fedgrass.local.aws.client import LocalAwsProcess, start
from tests.fixtures.browser import PATIENCE_MS, chromium
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import PATIENCE, eventually


def command(name: str, marker: Path) -> str:
    """A Processing job that runs a command, as the body of a request."""
    return json.dumps(
        {
            "ProcessingJobName": name,
            "RoleArn": "arn:aws:iam::123456789012:role/processing",
            "AppSpecification": {"ImageUri": "any", "ContainerEntrypoint": ["touch", str(marker)]},
            "ProcessingResources": {
                "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.t3.medium", "VolumeSizeInGB": 1}
            },
        }
    )


def signed(access_key: str) -> str:
    return f"AWS4-HMAC-SHA256 Credential={access_key}/20260101/us-east-1/sagemaker/aws4_request, Signature=0"


def key_of(account: LocalAwsProcess) -> str:
    return account.environment()["AWS_ACCESS_KEY_ID"]


def port_of(account: LocalAwsProcess) -> int:
    return int(account.endpoint_url.rpartition(":")[2])


def sent(account: LocalAwsProcess, body: str, headers: dict[str, str], target: str = "/") -> int:
    """Send the request of `command` with these headers; returns the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(account), timeout=PATIENCE)
    try:
        fixed = {"X-Amz-Target": "SageMaker.CreateProcessingJob", "Content-Type": "application/x-amz-json-1.1"}
        connection.request("POST", target, body, {**fixed, **headers})
        answer = connection.getresponse()
        assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control-")]
        answer.read()
        return answer.status
    finally:
        connection.close()


def jobs(account: LocalAwsProcess, name: str) -> list[Any]:
    found = account.client("sagemaker").list_processing_jobs(NameContains=name)
    return list(found["ProcessingJobSummaries"])


def test_with_this_starts_key_and_no_page_behind_it_a_request_is_served(
    local_aws: LocalAwsProcess, unique: str, tmp_path: Path
) -> None:
    body = command(unique, tmp_path / "marker")
    for host in (f"127.0.0.1:{port_of(local_aws)}", "localhost:1"):
        assert sent(local_aws, body, {"Authorization": signed(key_of(local_aws)), "Host": host}) in {200, 400}
    eventually((tmp_path / "marker").exists)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": ""},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@127.0.0.1.evil.example:80"},
        {"Host": "10.0.0.1"},
        {"Host": "[::"},
        {"Host": ""},
        {"Authorization": signed("local")},
        {"Authorization": signed("")},
        {"Authorization": signed("LOCAL" + "0" * 32)},
        {"Authorization": signed("ASIA0000000000000000")},
        {"Authorization": "Bearer x"},
        {"Authorization": ""},
        {"Authorization": signed("lo\u00e9cal")},
    ],
    ids=str,
)
def test_another_origin_another_name_or_another_key_is_refused_and_nothing_is_done(
    local_aws: LocalAwsProcess, unique: str, tmp_path: Path, headers: dict[str, str]
) -> None:
    right = {"Authorization": signed(key_of(local_aws))}
    assert sent(local_aws, command(unique, tmp_path / "marker"), {**right, **headers}) == 403
    assert jobs(local_aws, unique) == []
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("path", ["/moto-api/", "/moto-api/data.json", "/moto-api/reset", "/", "/bucket/key?acl"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_without_a_key_not_even_mocks_own_pages_are_served(local_aws: LocalAwsProcess, path: str, method: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(local_aws), timeout=PATIENCE)
    connection.request(method, path)
    assert connection.getresponse().status == 403
    connection.close()


def test_a_role_that_was_assumed_and_an_address_that_was_signed_get_in(local_aws: LocalAwsProcess, unique: str) -> None:
    given = local_aws.client("sts").assume_role(RoleArn="arn:aws:iam::123456789012:role/r", RoleSessionName="session")
    role = boto3.Session(
        aws_access_key_id=given["Credentials"]["AccessKeyId"],
        aws_secret_access_key=given["Credentials"]["SecretAccessKey"],
        aws_session_token=given["Credentials"]["SessionToken"],
        region_name=local_aws.region,
    )
    s3 = role.client("s3", endpoint_url=local_aws.endpoint_url)
    s3.create_bucket(Bucket=unique)
    s3.put_object(Bucket=unique, Key="k", Body=b"content")
    address = local_aws.client("s3").generate_presigned_url("get_object", Params={"Bucket": unique, "Key": "k"})
    connection = http.client.HTTPConnection("127.0.0.1", port_of(local_aws), timeout=PATIENCE)
    connection.request("GET", address.removeprefix(local_aws.endpoint_url))
    assert connection.getresponse().read() == b"content"
    connection.close()


def test_each_start_has_keys_of_its_own_that_only_its_owner_can_read(
    local_aws: LocalAwsProcess, tmp_path: Path
) -> None:
    assert Keys.new() != Keys.new()
    assert stat.S_IMODE((local_aws.state / "endpoint.json").stat().st_mode) == 0o600
    with start(tmp_path) as other:
        variables = {**other.environment(), "AWS_ENDPOINT_URL": local_aws.endpoint_url}
        assert variables["AWS_ACCESS_KEY_ID"] != key_of(local_aws)
        for service, call in (("sts", "get_caller_identity"), ("s3", "list_buckets"), ("iot", "list_things")):
            connect: Callable[..., Any] = boto3.client
            client = connect(
                service,
                endpoint_url=variables["AWS_ENDPOINT_URL"],
                region_name=other.region,
                aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            )
            with pytest.raises(ClientError, match=r"InvalidClientTokenId.*not of this start"):
                getattr(client, call)()
        said = (tmp_path / "logs" / "aws.log").read_text() + (tmp_path / "stderr.log").read_text()
        assert variables["AWS_SECRET_ACCESS_KEY"] not in said
        assert variables["AWS_ACCESS_KEY_ID"] not in said


def test_a_browsers_request_to_the_broker_gets_no_answer(local_aws: LocalAwsProcess, unique: str) -> None:
    host, _, port = local_aws.mqtt.partition(":")
    with socket.create_connection((host, int(port))) as browser, MqttClient(local_aws.mqtt) as device:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        device.subscribe(unique)
        device.publish(unique, b"served meanwhile")
        assert device.next().payload == b"served meanwhile"
        browser.setblocking(False)
        answer = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            answer = browser.recv(1000)
        assert answer == b""  # so no WebSocket


ATTACK = """
async ({endpoint, body, key}) => {
    const scope = '/20260101/us-east-1/sagemaker/aws4_request';
    const target = {'X-Amz-Target': 'SageMaker.CreateProcessingJob', 'Content-Type': 'application/x-amz-json-1.1'};
    const authorization = name => ({Authorization: 'AWS4-HMAC-SHA256 Credential=' + name + scope + ', Signature=0'});
    const query = '/?X-Amz-Target=SageMaker.CreateProcessingJob&X-Amz-Credential=' + encodeURIComponent(key + scope);
    const ended = element => new Promise(done => { element.onload = element.onerror = () => done('sent'); });
    const tried = {};
    const attempt = async (name, act) => {
        try { tried[name] = await act(); } catch (error) { tried[name] = 'blocked'; }
    };
    const read = async answer => answer.type === 'opaque' ? 'opaque' : answer.status + '';
    for (const name of ['local', key])
        await attempt('cors ' + (name === key ? 'right key' : 'old key'), async () => read(await fetch(
            endpoint + '/', {method: 'POST', body, headers: {...target, ...authorization(name)}})));
    await attempt('no-cors', async () => read(await fetch(endpoint + query, {method: 'POST', mode: 'no-cors', body})));
    await attempt('form', async () => {
        const frame = document.createElement('iframe');
        frame.name = 'sink';
        await new Promise(done => { frame.onload = done; document.body.appendChild(frame); });
        const form = document.body.appendChild(document.createElement('form'));
        Object.assign(form, {method: 'POST', action: endpoint + query, target: 'sink', enctype: 'text/plain'});
        const field = form.appendChild(document.createElement('input'));
        Object.assign(field, {name: body.slice(0, -1) + ', "x": "', value: '"}'});
        const sent = ended(frame);
        form.submit();
        return sent;
    });
    await attempt('image', async () => {
        const image = document.body.appendChild(new Image());
        const sent = ended(image);
        image.src = endpoint + '/?Action=CreateUser&UserName=image&Version=2010-05-08&AWSAccessKeyId=local';
        return sent;
    });
    return tried;
}
"""


@contextmanager
def a_site() -> Iterator[str]:
    """Serve an empty page, as any site does."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>evil</title><body></body>")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://evil.example:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.end_to_end
def test_a_page_in_a_real_browser_runs_nothing(local_aws: LocalAwsProcess, unique: str, tmp_path: Path) -> None:
    marker, key = tmp_path / "marker", key_of(local_aws)
    given = {"body": command(unique, marker), "key": key}
    with a_site() as site, chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(site)
        tried = page.evaluate(ATTACK, {**given, "endpoint": local_aws.endpoint_url})
        assert tried == {
            "cors old key": "blocked",
            "cors right key": "blocked",
            "no-cors": "opaque",
            "form": "sent",
            "image": "sent",
        }
        # After DNS rebinding the page's own name leads to the endpoint, and the browser sees no other origin.
        answer = page.goto(f"http://evil.example:{port_of(local_aws)}/")
        assert answer is not None
        assert answer.status == 403
        tried = page.evaluate(ATTACK, {**given, "endpoint": f"http://evil.example:{port_of(local_aws)}"})
        assert (tried["cors old key"], tried["cors right key"], tried["no-cors"]) == ("403", "403", "403")
    assert jobs(local_aws, unique) == []
    assert not marker.exists()
    users = local_aws.client("iam").list_users()["Users"]
    assert "image" not in {user["UserName"] for user in users}
    assert (
        sent(local_aws, given["body"], {"Authorization": signed(key)}) == 200
    )  # it was not the request that was wrong
    eventually(marker.exists)
