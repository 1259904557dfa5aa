"""Every record and message that crosses a process boundary; nothing else does.

`records.py`, `measurements.py`, `load.py` and `serving.py` hold what is kept and sent, `messages.py` and `work.py` the
conversations, `frames.py` how they travel; all of it is imported from here. `paired.py`, imported by name, holds what
client and engine both read out of the ratios in the records. Three conversations use it, all as length-prefixed msgpack
frames: client → engine (`ClientMessage`), engine → client (`EngineMessage`) over the Unix socket,
and engine ↔ worker (`JobSpec` one way, `WorkerMessage` the other) over a socketpair.

What a reader may rely on:
- Structs are immutable facts. A newer engine may add fields with defaults; unknown fields are ignored,
  so protocol `OLDEST_PROTOCOL` … `PROTOCOL` can talk to each other.
- Times of day are seconds since the epoch, durations say their unit in their name, sizes are bytes,
  shares and drops are fractions (0.01 is one percentage point).
- `None` means unknown or not measured. It is never replaced by 0 on the way to the screen.
- Foreign text (names, logs, error messages) is raw here; whoever draws or exports it cleans it.
"""

# ruff: noqa: F403  # a new record or message is named once, where it is defined
from .frames import *
from .load import *
from .measurements import *
from .messages import *
from .records import *
from .serving import *
from .work import *
