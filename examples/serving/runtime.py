"""Serves a DeepLab export with MLServer; model-settings.json names this class."""

import asyncio

from mlserver import MLModel
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse, MetadataTensor, ResponseOutput
from mlserver.utils import get_model_uri

from deeplab_tf.serving.kserve import LabelService, RequestError, Tensor


class DeepLab(MLModel):
    """Labels images with the export that the model settings name."""

    service = None

    async def load(self):
        """Loads the export; raises ValueError for invalid settings."""
        if self.settings.max_batch_size > 1:
            # MLServer merges requests before they are checked: one with a wrong shape
            # would change the answers to other requests.
            raise ValueError(
                "set max_batch_size in parameters.extra, not in the model settings"
            )
        path = await get_model_uri(self.settings)
        options = self.settings.parameters.extra or {}
        # Not in a thread: while a model loads, MLServer would refuse requests with the
        # status 400, and clients would not repeat them.
        self.service = LabelService(path, **options)
        self.inputs = [describe(one) for one in self.service.inputs]
        self.outputs = [describe(one) for one in self.service.outputs]
        return True

    async def predict(self, payload):
        """Labels the images of a request; raises InferenceError if it is invalid."""
        inputs = [
            # The type is a string over gRPC and an enumeration over HTTP.
            Tensor(
                x.name, getattr(x.datatype, "value", x.datatype), x.shape, x.data.root
            )
            for x in payload.inputs
        ]
        wanted = [x.name for x in payload.outputs or []]
        try:
            found = await self.service.infer(inputs, wanted)
        except RequestError as error:
            raise InferenceError(str(error)) from error
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[ResponseOutput(**x._asdict()) for x in found],
        )

    async def unload(self):
        """Waits for the batches in progress."""
        if self.service is not None:
            await asyncio.to_thread(self.service.close)
        return True


def describe(tensor):
    """Returns a tensor without data for the model's metadata."""
    return MetadataTensor(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )
