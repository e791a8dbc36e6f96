import sys
from pathlib import Path

# `--import-mode=importlib` leaves this folder off the path, and the tests share a module in it.
sys.path.insert(0, str(Path(__file__).parent))
