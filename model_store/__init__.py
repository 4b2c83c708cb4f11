"""Loads pretrained models, and loads and stores posterior artifacts and adapters."""

import logging

# At import, bitsandbytes warns that an optional kernel is missing. Nothing here uses the kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
