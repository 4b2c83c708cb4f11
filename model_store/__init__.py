"""What is loaded: base models, posterior artifacts, and the durable store of adapted task posteriors."""

import logging

# At import, bitsandbytes warns that an optional kernel of a model hub is missing. Nothing here uses it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
