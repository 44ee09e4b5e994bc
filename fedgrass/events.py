"""The one list of log events: what each name means, how serious it is, and the fields that it has.

`fedgrass.logs.log_event` takes its names from here and a test refuses any other; docs/reference/events.md is made from
it. A name is snake_case and means one thing, wherever it is logged. Any event may also carry what its log is bound to
(`CONTEXT`).
"""

from __future__ import annotations

import logging
from typing import NamedTuple

CONTEXT = ("component", "thing", "fleet", "round")
"""Fields that any event may have: where it happened."""


class Event(NamedTuple):
    """One kind of log line.

    Parameters
    ----------
    level
        A level of `logging`.
    meaning
        What happened, in a sentence.
    fields
        Names of the fields that it may have beside those of `CONTEXT`; one without a value is left out of the line.
    once
        Logged once by a process for the same fields.
    trace
        Carries the traceback of the exception that is being handled, or that its field ``error`` holds.
    """

    level: int
    meaning: str
    fields: tuple[str, ...] = ()
    once: bool = False
    trace: bool = False


def _debug(meaning: str, fields: str = "") -> Event:
    return Event(logging.DEBUG, meaning, tuple(fields.split()))


def _info(meaning: str, fields: str = "") -> Event:
    return Event(logging.INFO, meaning, tuple(fields.split()))


def _warning(meaning: str, fields: str = "") -> Event:
    return Event(logging.WARNING, meaning, tuple(fields.split()))


def _once(meaning: str, fields: str = "") -> Event:
    return Event(logging.WARNING, meaning, tuple(fields.split()), once=True)


def _error(meaning: str, fields: str = "") -> Event:
    return Event(logging.ERROR, meaning, tuple(fields.split()))


def _crash(meaning: str, fields: str = "") -> Event:
    return Event(logging.ERROR, meaning, tuple(fields.split()), trace=True)


_ANY_PROCESS = {
    "library_message": _info("A library logged a line of its own; its level is the library's.", "message"),
    "own_code_failed": Event(
        logging.ERROR,
        "A builder, an engine, a client or a loader of the user's own raised an error; its traceback is in the line.",
        ("what", "reason"),
        once=True,
        trace=True,
    ),
    "parameters_cast": _once(
        "A builder's parameters have another kind of float; they are trained as float32.", "dtypes"
    ),
}

_DEVICE = {
    # com.fedgrass.Runtime's installer
    "packages_installing": _info("The venv is being made.", "tag"),
    "packages_in_place": _info("The venv of these packages is there already.", "tag"),
    "pip_borrowed": _info("The host has no pip; the one of ensurepip is used."),
    "runtime_ready": _info("The other components can run.", "venv device"),
    # every component
    "component_started": _info("A component runs.", "fedgrass"),
    "component_stopped": _info("A component ends.", "exit_code"),
    "component_restarting": _info("A component starts over in its own place.", "exit_code"),
    "component_failed": _error("A component cannot go on.", "code reason"),
    "component_crashed": _crash("A component ends with an unexpected error."),
    "work_folder_not_writable": _warning(
        "The work folder cannot be written to; the component goes on without.", "folder reason"
    ),
    "library_changed": _info("The runtime's library has changed; the component exits to be started with it."),
    "configuration_updated": _info("A new configuration is in force."),
    "configuration_not_updated": _error("A new configuration is wrong; the former stays in force.", "reason"),
    "fleet_changed": _info("The configuration names another fleet; the component exits to be started again.", "to"),
    "local_message_ignored": _once("A message from another component on the device is malformed.", "reason"),
    "status_not_published": _once("The device's other components could not be told the status.", "error"),
    # the nucleus
    "ipc_disconnected": _warning("The nucleus closed the connection; it is opened again."),
    "ipc_lost": _error("The nucleus does not answer; the component exits to be started again.", "exit_code"),
    "ipc_token_renewed": _info("The nucleus had forgotten this component and gave it a new token."),
    "mqtt_daemon_replaced": _info("Nucleus lite has a new MQTT daemon; topics are subscribed to again."),
    "operation_unsupported": _info("This nucleus lacks an operation; the component does without.", "operation"),
    "subscription_failed": _once("A topic could not be subscribed to; it is tried again.", "subscription error"),
    "component_update_answered": _info("The nucleus was told when it may update.", "deployment deferred_seconds"),
    "component_update_not_answered": _once("The nucleus could not be told when it may update.", "error"),
    # messages and uploads
    "message_waiting": _once("A message could not be sent; it stays in the outbox and is tried again.", "topic error"),
    "message_damaged": _error("A message in the outbox is damaged and was set aside.", "file"),
    "outbox_list_damaged": _warning("The list of sent messages is damaged and starts over.", "folder"),
    "outbox_not_writable": _once(
        "It could not be noted that a message was sent; it may be sent twice.", "folder error"
    ),
    "stream_manager_away": _once("Stream Manager does not answer; uploads wait.", "error"),
    "task_stream_refused": _once("Stream Manager refuses a new task; uploads wait.", "error"),
    "task_stream_recreated": _info("The stream of tasks is full of finished ones and is created again."),
    "upload_queued": _info("Stream Manager has an upload's task.", "upload sequence"),
    "upload_interrupted": _warning("The connection to Stream Manager broke; uploads go on after it is back.", "error"),
    "upload_waiting": _warning("There is no news of an upload because the device lacks credentials.", "reason"),
    "upload_failed": _warning("An upload failed and is tried again after a pause.", "upload seconds reason"),
    "upload_status_lost": _warning("How an upload ended will never be told; it is uploaded again.", "upload"),
    "upload_ended": _info("An upload has ended.", "upload outcome reason"),
    "upload_record_damaged": _error(
        "An upload's record is damaged: where it was to go is lost, and it is given up.", "folder error"
    ),
    "download_waiting": _once("A download failed and is tried again.", "error"),
    # commands
    "command_received": _info("A command came.", "kind command"),
    "command_ignored": _once("A command is not one for this device, or was done before.", "reason command"),
    "command_damaged": _error("A stored command is damaged and was dropped.", "file"),
    "command_answered": _info("A command was done or refused.", "kind command status reason"),
    "command_answer_not_kept": _error("An answer could not be stored; the command is done again later.", "reason"),
    # training
    "announcement_refused": _warning("A helper job was handed an announcement that is malformed.", "reason"),
    "fleet_not_reached": _warning("A helper job could not reach the fleet's account; it tries again.", "reason"),
    "helper_ready": _info("A helper job has opened its key, and takes requests.", "key"),
    "sum_answered": _info("A helper job has answered a request for the sum of masks.", "command bytes"),
    "sum_refused": _warning("A helper job refuses to sum masks, and says why.", "reason"),
    "announcement_ignored": _once("An announcement is malformed, stale or of another fleet.", "reason"),
    "not_in_cohort": _info("The round does not ask this device."),
    "announced_round_closed": _info("The cloud closed the round that this device works on."),
    "round_record_damaged": _warning("What is stored of the round is damaged and starts over.", "file"),
    "round_record_not_written": _once("The round's state could not be stored.", "reason"),
    "loss_not_written": _once("The loss by which rounds may ask this device could not be stored.", "reason"),
    "tally_not_written": _once("The counts of rounds could not be stored.", "reason"),
    "training_resumed": _info("A round goes on that an earlier process began."),
    "training_started": _info("Training begins.", "examples base"),
    "training_waiting": _info("The owner's limits pause the training.", "reason"),
    "training_dropped": _info("A training was cut short: another round, or none, is asked for."),
    "evaluation_started": _info("The announced model is being evaluated.", "examples model"),
    "base_downloading": _info("The announced model is not on this device and is downloaded.", "base"),
    "data_read": _info("The device's data were read; what was guessed or filled in is noted.", "notes"),
    "live_data_compared": _info(
        "Live data were compared with the fleet's profile of that round; figures are as in the heartbeat.",
        "profile figures",
    ),
    "live_data_not_compared": _warning(
        "Live data could not be compared with the fleet's profile; it is tried again later.", "reason"
    ),
    "fine_tuning_started": _info("The device trains a copy of its own of the active model.", "version examples"),
    "fine_tuned": _info(
        "The device has a copy of its own of the active model; the reason says what its application loads.",
        "version reason metrics",
    ),
    "not_fine_tuned": _warning("The active model could not be fine-tuned on this device.", "version reason"),
    "drift_begun": _warning("So many devices have drifted that a round is to start.", "action drifted alive number"),
    "drift_step_started": _info("A round of the answer to drift was started.", "step number execution"),
    "drift_step_ended": _info("An execution of the answer to drift has ended.", "step number status"),
    "drift_given_up": _info("What was to follow a drift is dropped, and why.", "step number reason"),
    "data_left_out": _warning("Some of the device's data cannot be used and were left out.", "reason first"),
    "trained": _info("An update was made.", "seconds metrics"),
    "evaluated": _info("The announced model was evaluated.", "metrics"),
    "measuring_started": _info("The device's data are being measured for a profile.", "base"),
    "measured": _info("The device's data were measured for a profile of the fleet.", "examples"),
    "round_declined": _warning("This device or silo does not take part in the round.", "reason"),
    "round_failed": _warning("This device could not do what the round asks for.", "reason"),
    "answer_not_kept": _error("The round's answer could not be stored; it is tried again.", "reason"),
    "child_died": _error("The process that trains, or judges a model, died.", "during reason"),
    "work_crashed": _crash("Training ended with an unexpected error, often of a loader or an engine."),
    # models
    "model_active": _info("A model is the active one.", "version reason metrics"),
    "model_active_already": _info("The offered model is the active one already.", "version"),
    "model_refused": _warning("This device refuses a model.", "version reason metrics"),
    "model_refused_before": _info("A model was refused moments ago and stays out.", "version"),
    "model_rolled_back_before": _warning("A model was rolled back on this device and stays out.", "version"),
    "model_evaluation_crashed": _crash("A model could not be evaluated because of an unexpected error."),
    "model_outcome": _info("The cloud is told what became of a model here.", "version outcome reason metrics"),
    "model_outcome_not_kept": _once("What became of a model could not be stored for the cloud.", "reason"),
    "model_not_announced": _once("Applications could not be told the active model.", "error"),
    "admission_failed": _error("A model could not be admitted or refused.", "code reason"),
    "admission_not_told": _warning("ModelDeployer could not be told; it looks by itself.", "error"),
    "nucleus_missing": _warning("Run outside a nucleus: the model is not compared on data."),
    "application_unhealthy_model_stays": _once(
        "An application is not well, but there is no model to go back to.", "reason"
    ),
    "old_models_deleted": _info("Models that the store need not keep were deleted.", "versions"),
    "old_models_not_deleted": _once("Old models could not be deleted.", "reason"),
    # examples/application
    "application_model_loaded": _info("The example application has loaded a model.", "version"),
    "application_input_missing": _once("The example application has nothing to classify.", "reason"),
}

_CLOUD = {
    # rounds
    "round_opened": _info("A round asks its cohort.", "asked base"),
    "round_closed": _info("A round has ended.", "outcome reason"),
    "run_ended": _info("A run is over before all of its rounds were run.", "reason"),
    "run_goes_on": _info("A run goes on in a next execution.", "first done execution"),
    "round_not_finished": _error("What the round's outcome asks for could not be done.", "outcome reason"),
    "update_notice": _info("A device says what became of its update.", "status counted reason"),
    "update_notice_ignored": _warning("A message about an update is malformed.", "topic reason"),
    "evaluation_notice": _info("A device says how it evaluated a model.", "status counted reason"),
    "heartbeat_ignored": _warning("A heartbeat is malformed.", "topic reason"),
    "trainer_gone": _info("The round does not wait for a device whose trainer does not run.", "reason"),
    "nobody_left_to_answer": _info("All devices that can answer have answered; collecting ends.", "without"),
    "model_notice": _info("A device says what became of a model there.", "version outcome reason"),
    "model_notice_ignored": _warning("A message about a model is malformed.", "topic reason"),
    "model_withdrawn": _warning("More devices refused a model than the roll-out allows.", "version reason"),
    "model_put_back": _info("The model before is the fleet's again.", "version"),
    "refusals_not_acted_on": _error(
        "A refused model could not be taken back now; the next round's start does.", "reason"
    ),
    "deployment_failed": _warning("A device reports a failed deployment.", "deployment status reason"),
    "deployment_merged": _info(
        "Somebody else changed the deployment meanwhile; both changes hold.", "target deployment"
    ),
    "deployment_not_compared": _warning("Which model is deployed could not be read.", "reason"),
    "release_superseded": _warning("Another model was deployed meanwhile; this round's was not.", "reason"),
    "model_not_registered": _error("SageMaker's model registry did not take the model.", "version reason"),
    "canaries_deployed": _info("A model goes to the canaries first.", "target version deployment"),
    "device_claimed": _info("A new device got its identity."),
    "claim_refused": _warning("A device that asked for an identity did not get one.", "reason"),
    "device_item_unreadable": _warning("An entry of the devices' table cannot be read and is left out.", "reason"),
    "instance_item_unreadable": _warning("What is known of one device of a name is unreadable and left out.", "reason"),
    # the aggregator, silos and endpoints
    "aggregation_started": _info("The round's job was started.", "job updates instances"),
    "aggregation_repeated": _warning(
        "The job ran out of memory and is repeated on a larger machine.", "before machine"
    ),
    "aggregation_ended": _info("The round's job has ended.", "status said"),
    "aggregation_finished": _info("The job did what the round's outcome asks for.", "outcome reason updates seconds"),
    "round_finished_before": _info("The round has its report already.", "outcome"),
    "round_proposed_before": _info("An earlier run of the job decided what to propose; it stands.", "outcome"),
    "round_ended_meanwhile": _warning("The round ended before the job; nothing is released.", "reason"),
    "helpers_asked": _info(
        "Secure aggregation: the set of devices is named, and the helpers are asked for the sums of their masks.",
        "check helpers devices needed",
    ),
    "helper_check_refused": _warning("A helper's report on the boxes cannot be read.", "helper reason"),
    "helper_answered": _info("A helper's sums have arrived.", "helper"),
    "helper_answer_refused": _warning(
        "What a helper uploaded has another size than its sums for this set.", "helper bytes expected"
    ),
    "helper_key_not_kept": _error("A helper's key cannot be made or read, so it is no helper.", "reason"),
    "update_quarantined": _warning("An update was refused.", "reason times detail"),
    "partial_sums_not_removed": _warning("What instances told each other stays until the bucket expires it.", "reason"),
    "clock_differs_from_s3": _warning("S3 refused this machine's clock; requests go by S3's from now on.", "seconds"),
    "object_read_interrupted": _warning("Reading an object broke off and goes on from there.", "object position error"),
    "object_request_repeated": _warning(
        "S3 did not answer a request for an object, or was busy.", "object attempt error"
    ),
    "signed_requests_unavailable": _once("botocore is another than expected: objects are fetched by boto3.", "error"),
    "report_recorded": _info("The round's report was entered.", "outcome reason"),
    "round_tracked": _info("The tracking server has the round.", "run"),
    "round_not_tracked": _error("The tracking server did not take the round.", "reason"),
    "job_failed": _error("A job ends with an error.", "code reason"),
    "exit_message": _info("What SageMaker shows as the job's message.", "message"),
    "exit_message_not_written": _warning("The job's message could not be left for SageMaker.", "path reason"),
    "container_config_not_read": _warning("The container may not read what SageMaker left for it.", "path reason"),
    "heartbeat_lost": _warning("A silo's heartbeat could not be sent; the next one may be.", "error"),
    "silo_answered": _info("A silo has done what the round asks for.", "task examples"),
    "endpoint_started": _info("An endpoint's container serves a model.", "model version port"),
    "endpoint_failed": _error("An endpoint's container has no model to serve.", "reason"),
    "inference_refused": _warning("A request to the endpoint was refused.", "path status reason"),
}

_LOCAL_AWS = {
    "aws_ready": _info("The stand-in for AWS is up.", "endpoint"),
    "aws_failed": _error("The stand-in for AWS could not start or go on.", "reason"),
    "http_request": _debug("A request was answered.", "request status"),
    "http_message": _debug("The HTTP server said something.", "message"),
    "http_failed": _error("The HTTP server failed at a request.", "message"),
    "aws_request_refused": _warning(
        "A request comes from a place that is not allowed, or is not signed.", "path reason"
    ),
    "account_unreachable": _warning("Another account on this machine does not answer.", "account error"),
    "mqtt_handler_failed": _crash("A service could not take a message.", "topic"),
    "rule_crashed": _crash("A topic rule failed inside the stand-in.", "rule topic"),
    "rule_failed": _warning("Actions of a topic rule failed; its error action is tried.", "rule topic failures"),
    "rule_error_action_failed": _warning("A topic rule's error action failed, too.", "rule reason"),
    "clock_part_failed": _crash("Schedules or alarms failed inside the stand-in.", "part"),
    "alarm_changed": _info("An alarm has another state.", "alarm state reason"),
    "alarm_action_failed": _warning("What an alarm asks for was not done.", "alarm action reason"),
    "embedded_metrics_ignored": _warning("A log line with metrics is malformed.", "function reason"),
    "event_not_delivered": _warning("EventBridge could not deliver.", "detail_type target error"),
    "function_event_failed": _warning("A function failed at an event.", "function answer"),
    "function_event_dropped": _warning("A function is gone; its event is dropped.", "function reason"),
    "processing_job_changed": _info("A Processing job has another status.", "job status reason"),
    "training_job_ended": _info("A training job has ended.", "job status reason"),
    "component_version_settled": _info("A component version is deployable, or not.", "arn state errors"),
    "fleet_status_ignored": _warning("A core device's status message is malformed.", "reason"),
}

_LOCAL_DEVICE = {
    "device_started": _info("The stand-in for a core device is up.", "root"),
    "device_stopping": _info("The device ends."),
    "device_stopped": _info("The device has ended."),
    "leftovers_killed": _warning("Processes of an earlier run were ended.", "processes"),
    "ipc_restarted": _warning("The IPC server was told to start over."),
    "mqtt_restarted": _warning("The MQTT client was told to start over."),
    "cloud_connected": _info("The device is connected by MQTT.", "host port"),
    "cloud_disconnected": _warning("The MQTT connection is gone.", "reason"),
    "cloud_unreachable": _warning("AWS does not answer; it is tried again.", "error retry_seconds"),
    "credentials_unavailable": _warning("A component's credentials could not be obtained.", "error"),
    "job_malformed": _warning("An IoT job is malformed.", "topic error"),
    "job_superseded": _info("A newer job takes the place of one that runs.", "job by"),
    "job_crashed": _crash("A deployment failed inside the stand-in.", "job error"),
    "deployment_started": _info("A deployment begins.", "deployment components"),
    "deployment_deferred": _info("A component put the deployment off.", "deployment seconds"),
    "deployment_interrupted": _warning("An earlier run ended during a deployment; it is undone.", "deployment"),
    "deployment_not_installed": _warning("Components could not be installed.", "broken"),
    "deployment_broken": _warning("Components of the deployment are broken.", "deployment cause"),
    "deployment_rolled_back": _warning("The deployment before is put back.", "deployment cause"),
    "deployment_ended": _info("A deployment has ended.", "deployment status detail cause"),
    "components_replaced": _info("Components are stopped and started for a deployment.", "stopping starting"),
    "component_state": _info("A component has another state.", "version state previous"),
    "component_errored": _error("A component's script failed.", "version state attempt error"),
    "dependency_restart": _info("A component starts over with what it depends on.", "reason"),
    "component_shutdown_slow": _warning("A component did not end in time and is killed."),
    "component_supervision_crashed": _crash("Watching a component failed inside the stand-in.", "error"),
    "script_started": _info("A component's script runs.", "phase pid"),
    "ipc_connected": _info("A component is connected."),
    "ipc_connection_refused": _info("Somebody without a component's token asked for IPC."),
    "ipc_refused": _info("An IPC request was refused.", "operation error message"),
    "ipc_protocol_error": _warning("A component does not speak the IPC protocol.", "error"),
    "ipc_request_too_large": _warning("An IPC request is larger than allowed.", "bytes"),
    "ipc_operation_unsupported": _warning("The stand-in lacks an IPC operation.", "operation"),
    "ipc_consumer_slow": _warning("A component does not read what it subscribed to."),
    "ipc_handler_crashed": _crash("An IPC operation failed inside the stand-in.", "operation error"),
    "stream_manager_started": _info("The stand-in for Stream Manager is up.", "port streams"),
    "stream_manager_running": _info("The device has started Stream Manager.", "port pid"),
    "stream_manager_exited": _error("Stream Manager ended by itself.", "code"),
    "stream_manager_protocol_error": _warning("A client does not speak Stream Manager's protocol.", "error"),
    "stream_request_refused": _info("A request to Stream Manager was refused.", "operation error"),
    "export_status": _info("An export has another status.", "stream sequence key status message"),
    "export_retried": _warning("An export failed and is tried again.", "stream error seconds"),
    "export_halted": _error("A stream's exports have stopped.", "stream error"),
    "export_status_lost": _error("An export's status could not be written.", "stream error"),
    "exporter_crashed": _error("An exporter failed inside the stand-in.", "error"),
}

SECTIONS = {
    "Every process": _ANY_PROCESS,
    "Devices": _DEVICE,
    "Cloud": _CLOUD,
    "The stand-in for AWS": _LOCAL_AWS,
    "The stand-in for a core device": _LOCAL_DEVICE,
}
"""Events by where they are logged."""

EVENTS = {name: event for section in SECTIONS.values() for name, event in section.items()}
"""Every event by its name."""
