"""Passes over ONNX graphs: export, preparation, calibration, quantization, verification.

Each module takes and gives `onnx.ModelProto` or files; none knows of jobs, variants or the session. They live in
workers and import onnx and numpy at their top; `engine/techniques/` is where they are put together.
"""
