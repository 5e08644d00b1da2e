"""Prints the documents of a YAML text, which comes on standard input, as one JSON array."""
import json
import sys

import yaml

print(json.dumps(list(yaml.safe_load_all(sys.stdin))))
