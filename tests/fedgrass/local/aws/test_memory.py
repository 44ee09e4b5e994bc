"""The account keeps what it has to, and no more."""

from __future__ import annotations

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.waiting import eventually


def files_with(aws: LocalAwsProcess, text: bytes) -> int:
    return sum(text in file.read_bytes() for file in (aws.state / "objects").iterdir())


def test_an_object_is_a_file_until_it_is_written_over_or_deleted(local_aws: LocalAwsProcess, unique: str) -> None:
    s3, mark = local_aws.client("s3"), unique.encode()
    s3.create_bucket(Bucket=unique)
    for n in range(3):
        s3.put_object(Bucket=unique, Key="a", Body=mark + b"-%d" % n)
    s3.copy_object(Bucket=unique, Key="b", CopySource={"Bucket": unique, "Key": "a"})
    assert s3.get_object(Bucket=unique, Key="a")["Body"].read() == mark + b"-2"
    assert s3.get_object(Bucket=unique, Key="b", Range="bytes=0-3")["Body"].read() == mark[:4]
    listed = s3.list_object_versions(Bucket=unique, Prefix="a")["Versions"]
    assert [(one["Key"], one["Size"], one["IsLatest"]) for one in listed] == [("a", len(mark) + 2, True)]
    eventually(lambda: files_with(local_aws, mark) == 2, "two objects, two files")
    assert s3.get_object(Bucket=unique, Key="a")["Body"].read() == mark + b"-2"
    for key in "ab":
        s3.delete_object(Bucket=unique, Key=key)
    eventually(lambda: files_with(local_aws, mark) == 0, "no file left")


def test_an_object_of_several_parts_is_whole(local_aws: LocalAwsProcess, unique: str) -> None:
    s3, blocks = local_aws.client("s3"), [bytes([n]) * (5 << 20) for n in range(2)] + [b"end"]
    s3.create_bucket(Bucket=unique)
    upload = {"Bucket": unique, "Key": "whole"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    parts = [
        {"PartNumber": n, "ETag": s3.upload_part(**upload, PartNumber=n, Body=block)["ETag"]}
        for n, block in enumerate(blocks, 1)
    ]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=unique, Key="whole")["Body"].read() == b"".join(blocks)


def test_a_list_of_versions_tells_the_latest_and_each_can_be_read(local_aws: LocalAwsProcess, unique: str) -> None:
    s3 = local_aws.client("s3")
    s3.create_bucket(Bucket=unique)
    s3.put_bucket_versioning(Bucket=unique, VersioningConfiguration={"Status": "Enabled"})
    for n in range(3):
        s3.put_object(Bucket=unique, Key="a", Body=b"%d" % n)
    for _ in range(2):
        listed = s3.list_object_versions(Bucket=unique, Prefix="a")["Versions"]
        assert [one["IsLatest"] for one in listed] == [True, False, False]
        found = [s3.get_object(Bucket=unique, Key="a", VersionId=one["VersionId"])["Body"].read() for one in listed]
        assert sorted(found) == [b"0", b"1", b"2"]
        assert found[0] == b"2"
