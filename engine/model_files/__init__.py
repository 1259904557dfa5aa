"""The kinds of model file, one module each: `python_file`, `onnx_file`, `pickle_file`.

`engine/models.py` says what a `Model` is and is the only way in. Beside the three kinds: how a user's module is
imported (`importing`), how inputs and outputs get their names (`tensors`), how data becomes batches and how
calibration is kept apart from test data (`datasets`), and for graphs what is refused before anything else reads
them (`onnx_safety`) and how inputs are made up where there is no data (`onnx_inputs`).
"""
