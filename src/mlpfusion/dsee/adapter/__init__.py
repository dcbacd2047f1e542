"""DSEE as PEFT knows it.

PEFT comes first: at the end of its import the hook brings in these files, which could not be half imported then.
"""

import peft as peft
