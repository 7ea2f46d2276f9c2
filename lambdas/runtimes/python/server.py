"""Entry point of the in-pod server of Python lambdas: python3 server.py."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lambdamesh_runtime.server import main  # noqa: E402

main()
