"""Reads /metrics from standard input with Prometheus' own parser and prints one JSON list per sample: name, labels, value.

argv: open or classic, the form that it comes in
"""
import json
import sys

from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

parse = {"open": open_parser, "classic": parser}[sys.argv[1]].text_string_to_metric_families
for family in parse(sys.stdin.read()):
    if not family.documentation:
        sys.exit(f"{family.name} has no help")
    for sample in family.samples:
        print(json.dumps([sample.name, sample.labels, sample.value]))
