"""What is loaded and kept: pretrained models, posterior artifacts, adapters on disk."""

import logging

# At import, bitsandbytes warns that an optional kernel is missing. Nothing here uses the kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
