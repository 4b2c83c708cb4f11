"""The Open Inference Protocol, version 2, over REST: `/v2`, for clients of KServe and Triton."""

from service.api.oip.routes import router
from service.api.oip.translate import error_shape

__all__ = ["error_shape", "router"]
