"""Stream definitions, export tasks and their status messages, as the SDK encodes them."""

from __future__ import annotations

from enum import IntEnum

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

_NAME = r"^[\w ,.\-_]+$"


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class StrategyOnFull(IntEnum):
    """What happens to an append when the stream has no room."""

    REJECT_NEW_DATA = 0
    OVERWRITE_OLDEST_DATA = 1


class Persistence(IntEnum):
    """Whether the stream's data outlive Stream Manager."""

    FILE = 0
    MEMORY = 1


class StatusLevel(IntEnum):
    """How much a status stream is told."""

    ERROR = 0
    WARN = 1
    INFO = 2
    DEBUG = 3
    TRACE = 4


class TaskStatus(IntEnum):
    """How an export task stands; SUCCESS, FAILURE and CANCELED are final."""

    SUCCESS = 0
    FAILURE = 1
    IN_PROGRESS = 2
    WARNING = 3
    CANCELED = 4


class StatusConfig(_Model):
    """Where and how much the status of tasks is written."""

    status_level: StatusLevel = StatusLevel.INFO
    status_stream_name: str | None = None


class S3Export(_Model):
    """Uploads to S3 the file that each message names."""

    identifier: str = Field(min_length=1, max_length=255, pattern=_NAME)
    size_threshold_for_multipart_upload_bytes: int = Field(5 * 1024 * 1024, ge=5 * 1024 * 1024)
    priority: int = Field(10, ge=1, le=10)
    disabled: bool = False
    status_config: StatusConfig | None = None


class ExportDefinition(_Model):
    """Where a stream is exported to; this stand-in serves S3 only."""

    s3_task_executor: list[S3Export] = Field(default_factory=list)
    # Of length 0: another kind of export is refused when the stream is made, and not silently left undone.
    http: list[object] = Field(default_factory=list, max_length=0)
    iot_analytics: list[object] = Field(default_factory=list, max_length=0)
    kinesis: list[object] = Field(default_factory=list, max_length=0)
    # The SDK spells this one with a capital letter.
    iot_sitewise: list[object] = Field(default_factory=list, max_length=0, alias="IotSitewise")


class StreamDefinition(_Model):
    """A stream; sizes are in bytes, times in milliseconds."""

    name: str = Field(min_length=1, max_length=255, pattern=_NAME)
    max_size: int = Field(256 * 1024 * 1024, ge=1024)
    stream_segment_size: int = Field(16 * 1024 * 1024, ge=1024, le=2**31 - 1)
    time_to_live_millis: int | None = Field(None, ge=60_000)
    strategy_on_full: StrategyOnFull
    persistence: Persistence = Persistence.FILE
    flush_on_write: bool = False
    export_definition: ExportDefinition | None = None

    @property
    def exports(self) -> list[S3Export]:
        """The exports to S3, none if there is no export definition."""
        return self.export_definition.s3_task_executor if self.export_definition else []


class S3Task(_Model):
    """One upload: a message of an exporting stream."""

    input_url: str
    bucket: str
    key: str
    user_metadata: dict[str, str] | None = None


class StatusContext(_Model):
    """Which task a status is about."""

    s3_export_task_definition: S3Task | None = None
    export_identifier: str
    stream_name: str
    sequence_number: int


class StatusMessage(_Model):
    """A message of a status stream; ``event_type`` 0 is an S3 task."""

    event_type: int = 0
    status_level: StatusLevel
    status: TaskStatus
    status_context: StatusContext
    message: str = ""
    timestamp_epoch_ms: int

    def encoded(self) -> bytes:
        """Return the JSON that ``Util.deserialize_json_bytes_to_obj`` reads."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


class ExportProgress(_Model):
    """How far an export has come: everything up to ``last_exported_sequence_number`` has a final status."""

    last_exported_sequence_number: int = -1
    last_export_time: int = 0
    error_message: str = ""
    exported_bytes_from_stream: int = 0
    exported_messages_count: int = 0
