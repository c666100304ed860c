"""Reads a configuration file into `sidecar.settings`: accepted whole or refused whole.

One walk over the YAML nodes, led by the types of the structs, so that every error carries the path
of its key. Rules:

1. A scalar is text until the type of its key says otherwise: `name: 007`, `mode: off` and
   `limit: ${LIMIT}` mean what they look like, not what YAML 1.1 makes of them.
2. `${NAME}` in a value is taken from the environment, `${NAME:-default}` when it may be unset or
   empty; `$${` is a literal `${`.
3. Unknown and repeated keys are errors. An absent key keeps the default of its place.
4. Tags are refused, and nesting and size are bounded, since aliases can make a small file huge.
"""

import difflib
import functools
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, Union, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
import yaml

from sidecar.errors import ConfigError
from sidecar.settings import Config
from sidecar.values import Address, parse_address

# 80,000 tenants; more belong into Redis.
_MAX_NODES: Final = 500_000
_MAX_DEPTH: Final = 16
_NEEDS_RESTART: Final = ("listen", "admin", "health_listen", "mesh", "state_file")
_HIDDEN: Final = "***"
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}|\$\{")
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_STR, _SEQ, _MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_TAGS: Final = frozenset({_STR, _SEQ, _MAP})


class _Loader(yaml.CBaseLoader):
    """libyaml, making no objects and guessing no types: ten times faster than PyYAML in Python."""

    def resolve(self, kind: type[yaml.Node], value: object, implicit: object) -> str:
        """Called for each untagged node: PyYAML's own takes a third of the time to say the same."""
        return _STR if kind is yaml.ScalarNode else _SEQ if kind is yaml.SequenceNode else _MAP


def load(path: Path, env: Mapping[str, str]) -> Config:
    """Read and decode `path`; whatever is wrong with it is a ConfigError."""
    return decode(read(path), env)


def read(path: Path) -> bytes:
    """What `path` holds; ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("", f"cannot be read: {error.strerror}") from None


def decode(text: str | bytes, env: Mapping[str, str]) -> Config:
    """The configuration that `text` (YAML or JSON) means, with `${NAME}` taken from `env`."""
    try:
        _check_depth(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(_where(error.problem_mark), problem) from None
    except yaml.YAMLError as error:
        raise ConfigError("", f"not valid YAML: {' '.join(str(error).split())}") from None
    if node is None:
        node = yaml.MappingNode(_MAP, [])
    config = _Reader(env).read(Config, node, "", None)
    assert isinstance(config, Config)
    return config


def _where(mark: object) -> str:
    """For people; a mark of libyaml's or of PyYAML's, or none."""
    line, column = getattr(mark, "line", None), getattr(mark, "column", None)
    return "" if line is None or column is None else f"line {line + 1}, column {column + 1}"


def _check_depth(text: str | bytes) -> None:
    """libyaml composes by recursion in C: what is nested too deeply would end the process, not the call."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CBaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ConfigError(_where(event.start_mark), "too deeply nested")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def needs_restart(old: Config, new: Config) -> str | None:
    """The first changed key that a running sidecar cannot take over."""
    if list(old.classes) != list(new.classes):
        return "classes (their names or their order)"
    for key in _NEEDS_RESTART:
        if getattr(old, key) != getattr(new, key):
            return key
    meets = new.mesh is not None and (old.redis is None) != (new.redis is None)
    return "redis (members meet there, or they do not)" if meets else None


def schema() -> dict[str, object]:
    """The JSON Schema of the file, for editors."""
    result = msgspec.json.schema(Config, schema_hook=lambda _: {"description": "anything"})
    definitions = result["$defs"]
    for definition in definitions.values():
        for key in definition.get("properties", {}).values():
            if key.get("$ref") == "#/$defs/Address" and "default" in key:
                key["default"] = str(Address(**key["default"]))
    definitions["Address"] = {
        "title": "Address",
        "description": "host:port, [v6]:port or unix:path",
        "type": "string",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **result}


def redacted(config: Config) -> dict[str, object]:
    """The configuration in force as plain values, without anything that opens a door."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def _plain(value: object) -> object:
    if isinstance(value, Address):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return {f.encode_name: _shown(f.name, getattr(value, f.name)) for f in msgspec.structs.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _shown(key: str, value: object) -> object:
    if key == "key_sha256" and isinstance(value, tuple):
        return [_HIDDEN] * len(value)
    if key == "header" and isinstance(value, dict):
        return dict.fromkeys(value, _HIDDEN)
    if key == "url" and isinstance(value, str):
        return _without_password(value)
    return _plain(value)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    # redis-py also takes the password from the query.
    query = _HIDDEN if parts.query else ""
    return parts._replace(netloc=f"{_HIDDEN}{at}{host}" if login or at else host, query=query).geturl()


class _Shape(NamedTuple):
    """What a type hint asks for: the hint without None and Annotated, and what an error calls it."""

    hint: object
    kind: object  # tuple, dict, Literal, or the type itself; msgspec.Struct for every section
    optional: bool
    title: str
    fields: dict[str, msgspec.structs.FieldInfo]


@functools.cache
def _shape(hint: object) -> _Shape:
    optional, title, bare = False, "", hint
    while True:
        if get_origin(bare) is Annotated:
            bare, *metas = get_args(bare)
            title = next((meta.title for meta in metas if meta.title), title)
        elif get_origin(bare) in (types.UnionType, Union):  # the latter where an Annotated takes part
            hint = bare = next(option for option in get_args(bare) if option is not types.NoneType)
            optional = True
        else:
            break
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct) and bare is not Address:
        fields = {info.encode_name: info for info in msgspec.structs.fields(bare)}
        return _Shape(bare, msgspec.Struct, optional, title, fields)
    title = title or {bool: "true or false", str: "text"}.get(bare, "one value")  # type: ignore[call-overload]
    # A scalar keeps its annotation, which holds its bounds.
    whole = hint if bare in (int, float, str, bool) else bare
    return _Shape(whole, get_origin(bare) or bare, optional, title, {})


class _Reader:
    """Turns nodes into the values their types ask for."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._nodes = 0

    def read(self, hint: object, node: yaml.Node, path: str, default: object, depth: int = 0) -> object:
        """The value of `node` as `hint`; `default` is what stands at this place when nothing is given."""
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ConfigError(path, "too much, or too deeply nested")
        if node.tag not in _TAGS:
            raise ConfigError(path, f"YAML tags ({node.tag}) are not supported")
        shape = _shape(hint)
        plain = isinstance(node, yaml.ScalarNode) and not node.style
        # Expanded first: `health_listen: ${HEALTH:-}` is absent when the variable is.
        if shape.optional and plain and self._expand(node.value, path) in _NULL:
            return None
        if shape.kind is msgspec.Struct:
            return self._struct(shape, node, path, default, depth + 1)
        if shape.kind is tuple:
            return self._list(get_args(shape.hint)[0], node, path, depth + 1)
        if shape.kind is dict:
            defaults = default if isinstance(default, dict) else {}
            key_hint, hint = get_args(shape.hint)
            return self._dict(key_hint, hint, node, path, defaults, depth + 1)
        if shape.kind is object:
            return self._anything(node, path, depth + 1)
        return self._scalar(shape, node, path)

    def _struct(self, shape: _Shape, node: yaml.Node, path: str, default: object, depth: int) -> object:
        cls = shape.hint
        assert isinstance(cls, type)
        values = msgspec.structs.asdict(default) if isinstance(default, msgspec.Struct) else {}
        for key, child in self._items(node, path):
            info = shape.fields.get(key)
            if info is None:
                raise ConfigError(_join(path, key), f"unknown key{_nearest(key, shape.fields)}")
            default = values.get(info.name, _default(info))
            values[info.name] = self.read(info.type, child, _join(path, key), default, depth)
        for key, info in shape.fields.items():
            if info.required and info.name not in values:
                raise ConfigError(_join(path, key), "is required")
        try:
            value: object = cls(**values)
        except ConfigError as error:
            raise ConfigError(_join(path, error.path), error.problem) from None
        return value

    def _list(self, item: object, node: yaml.Node, path: str, depth: int) -> tuple[object, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise ConfigError(path, f"expected a list, got {_kind(node)}")
        children = enumerate(node.value)
        return tuple(self.read(item, child, f"{path}[{i}]", None, depth) for i, child in children)

    def _dict(
        self,
        key_hint: object,
        hint: object,
        node: yaml.Node,
        path: str,
        defaults: Mapping[str, object],
        depth: int,
    ) -> dict[str, object]:
        items = self._items(node, path)
        for key, _ in items:
            self._check_key(_shape(key_hint), key, path)
        return {
            key: self.read(hint, child, _join(path, key), defaults.get(key), depth) for key, child in items
        }

    def _check_key(self, shape: _Shape, key: str, path: str) -> None:
        try:
            msgspec.convert(key, type=shape.hint)
        except msgspec.ValidationError:
            raise ConfigError(_join(path, key), f"expected {shape.title}") from None

    def _anything(self, node: yaml.Node, path: str, depth: int) -> object:
        if isinstance(node, yaml.MappingNode):
            return self._dict(str, object, node, path, {}, depth)
        if isinstance(node, yaml.SequenceNode):
            return list(self._list(object, node, path, depth))
        return self._expand(node.value, path)

    def _items(self, node: yaml.Node, path: str) -> list[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(path, f"expected a mapping, got {_kind(node)}")
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(path, f"line {key.start_mark.line + 1}: a key must be text")
            line = key.start_mark.line + 1
            if key.value in lines:
                problem = f"given twice, on lines {lines[key.value]} and {line}"
                raise ConfigError(_join(path, key.value), problem)
            lines[key.value] = line
        return [(key.value, child) for key, child in node.value]

    def _scalar(self, shape: _Shape, node: yaml.Node, path: str) -> object:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(path, f"expected {shape.title}, got {_kind(node)}")
        text = self._expand(node.value, path)
        if shape.kind is Literal:
            options = {str(option): option for option in get_args(shape.hint)}
            if text not in options:
                raise ConfigError(path, f"expected one of {', '.join(options)}; got {text!r}")
            return options[text]
        if shape.kind is Address:
            try:
                return parse_address(text)
            except ValueError as error:
                raise ConfigError(path, f"{error}; got {text!r}") from None
        try:
            return msgspec.convert(text, type=shape.hint, strict=False)
        except msgspec.ValidationError:
            # What should be a number is shown; free text may be a secret in the wrong place.
            got = "" if shape.kind is str else f", got {text!r}"
            raise ConfigError(path, f"expected {shape.title}{got}") from None

    def _expand(self, text: str, path: str) -> str:
        if "${" not in text:
            return text

        def value(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            if name is None:
                if match.group() == "$${":
                    return "${"
                raise ConfigError(path, "expected ${NAME} or ${NAME:-default}; write $${ for a literal ${")
            if default is not None:
                return self._env.get(name) or default[2:]
            if name not in self._env:
                raise ConfigError(path, f"environment variable {name} is not set")
            return self._env[name]

        return _VARIABLE.sub(value, text)


def _default(info: msgspec.structs.FieldInfo) -> object:
    return info.default_factory() if callable(info.default_factory) else info.default


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _nearest(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "one value"
