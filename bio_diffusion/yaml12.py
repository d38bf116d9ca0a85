"""YAML as configurations are written: the scalars of YAML 1.2, no aliases, no repeated keys."""

import re
from typing import Any


def dump(tree: Any) -> str:
    """Text that `load` gives back unchanged."""
    import yaml

    class Dumper(yaml.SafeDumper):
        yaml_implicit_resolvers = _resolvers()

    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def load(text: str) -> Any:
    """Plain data of a YAML text.

    Raises:
        ValueError: it is none, or has an alias or a repeated key.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = _resolvers()

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("aliases (*name) are not accepted")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            if repeated := {key for key in keys if keys.count(key) > 1}:
                raise ValueError(f"{repeated.pop()!r} is given twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """YAML 1.2's core schema, by first character; 1.1 has `NO` for false and `1e-3` for text."""
    rules = {
        "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
        "null": (r"~|null|Null|NULL|", "~nN\0"),
        "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),  # 007 stays text
        "float": (
            r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
            r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
            "-+.0123456789",
        ),
    }
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, (pattern, firsts) in rules.items():
        for first in firsts:
            key = "" if first == "\0" else first
            rule = (f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"))
            table.setdefault(key, []).append(rule)
    return table
