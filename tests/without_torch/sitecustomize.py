"""Read by all commands that tests start: they have no PyTorch, like most users.

It is there for comparisons only, but transformers would import it, which takes 3 s.
"""

import sys

sys.modules["torch"] = None
