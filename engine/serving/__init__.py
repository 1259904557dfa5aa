"""A variant served to other programs: KServe v2 (Open Inference Protocol) over HTTP and gRPC, on the dynamic batcher.

Lives in workers. From the inside out: `tensors` checks what comes in against what the model takes, `description` finds
out what that is, `served` is the model behind its batcher with its counts, `bodies` reads and writes HTTP bodies,
`held` bounds what they take, `http` and `grpc_service` are the two doors, `metrics` is what they tell of the model,
and `job` runs it all as a job of the session.
"""
