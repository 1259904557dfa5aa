"""The models of `peer_batchers` with LitServe's hooks. A module of its own: LitServe's worker process imports it."""

import time

import litserve
import numpy as np


class Null(litserve.LitAPI):
    """Gives back what it gets."""

    def setup(self, device):
        pass

    def decode_request(self, request):
        return request

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, rows):
        return rows

    def unbatch(self, output):
        return [output[number : number + 1] for number in range(len(output))]

    def encode_response(self, output):
        return output


class Sleeping(Null):
    """Sleeps 2 ms a batch, as `peer_batchers.SLEEP` says."""

    def predict(self, rows):
        time.sleep(0.002)
        return rows


MODELS = {"full": Null, "sleeping": Sleeping, "lone": Null}
