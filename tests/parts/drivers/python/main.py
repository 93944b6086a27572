"""Runs one of the Python drivers: main.py DRIVER [OPERATION TO LEAVE OUT...]."""

import importlib
import sys

importlib.import_module("with_" + sys.argv[1]).main()
