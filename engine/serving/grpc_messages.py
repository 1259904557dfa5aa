"""The messages of the protocol's gRPC service `inference.GRPCInferenceService`, laid out as a table.

Field names and numbers are those of KServe's `grpc_predict_v2.proto` with Triton's statistics and the part of its
`model_config.proto` that is true of our models beside them. The classes are made at run time in a pool of their own: so
there is no generated code that binds us to one release of protobuf, and a client library with its own classes of the
same names can live in the same process.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"

_TYPES = {
    "bool": 8, "int32": 5, "int64": 3, "uint32": 13, "uint64": 4, "float": 2, "double": 1, "string": 9, "bytes": 12,
}  # fmt: skip
"""Scalar types by protobuf's numbers for them."""

_ENUMS: dict[str, list[str]] = {
    "DataType": [
        f"TYPE_{name}"
        for name in (
            "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
            "FP32", "FP64", "STRING", "BF16",
        )
    ],
    "ModelInstanceGroup.Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
    "ModelQueuePolicy.TimeoutAction": ["REJECT", "DELAY"],
}  # fmt: skip
"""Values in the order of their numbers, from 0."""

# Name → fields: (name, number, type), with "*" behind the type for a repeated field and "map" for one with string keys
# and `InferParameter` values. A dot in a message's name nests it.
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": [("live", 1, "bool")],
    "ServerReadyRequest": [],
    "ServerReadyResponse": [("ready", 1, "bool")],
    "ModelReadyRequest": [("name", 1, "string"), ("version", 2, "string")],
    "ModelReadyResponse": [("ready", 1, "bool")],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": [("name", 1, "string"), ("version", 2, "string"), ("extensions", 3, "string*")],
    "ModelMetadataRequest": [("name", 1, "string"), ("version", 2, "string")],
    "ModelMetadataResponse": [
        ("name", 1, "string"),
        ("versions", 2, "string*"),
        ("platform", 3, "string"),
        ("inputs", 4, "ModelMetadataResponse.TensorMetadata*"),
        ("outputs", 5, "ModelMetadataResponse.TensorMetadata*"),
    ],
    "ModelMetadataResponse.TensorMetadata": [("name", 1, "string"), ("datatype", 2, "string"), ("shape", 3, "int64*")],
    "InferParameter": [
        ("bool_param", 1, "bool"),
        ("int64_param", 2, "int64"),
        ("string_param", 3, "string"),
        ("double_param", 4, "double"),
        ("uint64_param", 5, "uint64"),
    ],
    "InferTensorContents": [
        ("bool_contents", 1, "bool*"),
        ("int_contents", 2, "int32*"),
        ("int64_contents", 3, "int64*"),
        ("uint_contents", 4, "uint32*"),
        ("uint64_contents", 5, "uint64*"),
        ("fp32_contents", 6, "float*"),
        ("fp64_contents", 7, "double*"),
        ("bytes_contents", 8, "bytes*"),
    ],
    "ModelInferRequest": [
        ("model_name", 1, "string"),
        ("model_version", 2, "string"),
        ("id", 3, "string"),
        ("parameters", 4, "map"),
        ("inputs", 5, "ModelInferRequest.InferInputTensor*"),
        ("outputs", 6, "ModelInferRequest.InferRequestedOutputTensor*"),
        ("raw_input_contents", 7, "bytes*"),
    ],
    "ModelInferRequest.InferInputTensor": [
        ("name", 1, "string"),
        ("datatype", 2, "string"),
        ("shape", 3, "int64*"),
        ("parameters", 4, "map"),
        ("contents", 5, "InferTensorContents"),
    ],
    "ModelInferRequest.InferRequestedOutputTensor": [("name", 1, "string"), ("parameters", 2, "map")],
    "ModelInferResponse": [
        ("model_name", 1, "string"),
        ("model_version", 2, "string"),
        ("id", 3, "string"),
        ("parameters", 4, "map"),
        ("outputs", 5, "ModelInferResponse.InferOutputTensor*"),
        ("raw_output_contents", 6, "bytes*"),
    ],
    "ModelInferResponse.InferOutputTensor": [
        ("name", 1, "string"),
        ("datatype", 2, "string"),
        ("shape", 3, "int64*"),
        ("parameters", 4, "map"),
        ("contents", 5, "InferTensorContents"),
    ],
    "ModelStatisticsRequest": [("name", 1, "string"), ("version", 2, "string")],
    "StatisticDuration": [("count", 1, "uint64"), ("ns", 2, "uint64")],
    "InferStatistics": [
        ("success", 1, "StatisticDuration"),
        ("fail", 2, "StatisticDuration"),
        ("queue", 3, "StatisticDuration"),
        ("compute_input", 4, "StatisticDuration"),
        ("compute_infer", 5, "StatisticDuration"),
        ("compute_output", 6, "StatisticDuration"),
        ("cache_hit", 7, "StatisticDuration"),
        ("cache_miss", 8, "StatisticDuration"),
    ],
    "InferBatchStatistics": [
        ("batch_size", 1, "uint64"),
        ("compute_input", 2, "StatisticDuration"),
        ("compute_infer", 3, "StatisticDuration"),
        ("compute_output", 4, "StatisticDuration"),
    ],
    "ModelStatistics": [
        ("name", 1, "string"),
        ("version", 2, "string"),
        ("last_inference", 3, "uint64"),
        ("inference_count", 4, "uint64"),
        ("execution_count", 5, "uint64"),
        ("inference_stats", 6, "InferStatistics"),
        ("batch_stats", 7, "InferBatchStatistics*"),
    ],
    "ModelStatisticsResponse": [("model_stats", 1, "ModelStatistics*")],
    "ModelConfigRequest": [("name", 1, "string"), ("version", 2, "string")],
    "ModelConfigResponse": [("config", 1, "ModelConfig")],
    "ModelConfig": [
        ("name", 1, "string"),
        ("platform", 2, "string"),
        ("max_batch_size", 4, "int32"),
        ("input", 5, "ModelInput*"),
        ("output", 6, "ModelOutput*"),
        ("instance_group", 7, "ModelInstanceGroup*"),
        ("dynamic_batching", 11, "ModelDynamicBatching"),
        ("backend", 17, "string"),
    ],
    "ModelInput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 4, "int64*")],
    "ModelOutput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 3, "int64*")],
    "ModelInstanceGroup": [("name", 1, "string"), ("count", 2, "int32"), ("kind", 4, "ModelInstanceGroup.Kind")],
    "ModelDynamicBatching": [
        ("preferred_batch_size", 1, "int32*"),
        ("max_queue_delay_microseconds", 2, "uint64"),
        ("priority_levels", 4, "uint64"),
        ("default_priority_level", 5, "uint64"),
        ("default_queue_policy", 6, "ModelQueuePolicy"),
    ],
    "ModelQueuePolicy": [
        ("timeout_action", 1, "ModelQueuePolicy.TimeoutAction"),
        ("default_timeout_microseconds", 2, "uint64"),
        ("allow_timeout_override", 3, "bool"),
        ("max_queue_size", 4, "uint32"),
    ],
    "RepositoryIndexRequest": [("repository_name", 1, "string"), ("ready", 2, "bool")],
    "RepositoryIndexResponse": [("models", 1, "RepositoryIndexResponse.ModelIndex*")],
    "RepositoryIndexResponse.ModelIndex": [
        ("name", 1, "string"),
        ("version", 2, "string"),
        ("state", 3, "string"),
        ("reason", 4, "string"),
    ],
}

METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelStatistics",
    "ModelConfig",
    "RepositoryIndex",
)
"""Each takes `<name>Request` and answers with `<name>Response`, one of each."""

_ONE_OF = "InferParameter"
"""The message whose fields exclude each other."""


def _make_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="inference", syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for path, fields in _MESSAGES.items():
        outer, _, name = path.rpartition(".")
        made[path] = message = made[outer].nested_type.add() if outer else file.message_type.add()
        message.name = name
        if path == _ONE_OF:
            message.oneof_decl.add(name="parameter_choice")
        for field in fields:
            _add_field(message, path, *field)
    for path, values in _ENUMS.items():
        outer, _, name = path.rpartition(".")
        enum = (made[outer] if outer else file).enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        path: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{path}")) for path in _MESSAGES
    }


def _add_field(message: descriptor_pb2.DescriptorProto, path: str, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number)
    repeated = kind.endswith("*") or kind == "map"
    field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
    kind = kind.removesuffix("*")
    if kind == "map":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", 1, "string")
        _add_field(entry, "", "value", 2, "InferParameter")
        kind = f"{path}.{entry.name}"
    if kind in _TYPES:
        field.type = _TYPES[kind]
    else:
        field.type = field.TYPE_ENUM if kind in _ENUMS else field.TYPE_MESSAGE
        field.type_name = f".inference.{kind}"
    if path == _ONE_OF:
        field.oneof_index = 0


CLASSES = _make_classes()
"""Message class by name ("ModelInferRequest", …)."""
