"""The surface of the Open Inference Protocol, version 2: `/v2` (docs/interfaces-oip.md).

Clients of KServe and Triton use this protocol.
"""

from service.api.oip.rendering import error_shape
from service.api.oip.routes import router

PREFIXES = ("/v2",)

__all__ = ["PREFIXES", "error_shape", "router"]
