"""Loading, adapters, the packed forward, the head and the reference store."""

import logging

# PEFT imports bitsandbytes where it is installed, which warns of a kernel on the hub that Letheon does not use.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
