"""A `tensorrt` package with exactly the recorded API of one version, which builds engines of a few bytes.

It lies as `tensorrt/__init__.py` beside `api.json` (see record.py) and `behaviour.json`. Whatever the recorded bindings
do not have raises what pybind11 raises: AttributeError for a name, TypeError for arguments that no overload takes. What
they have but nobody acts out here raises NotImplementedError. Like the bindings it needs no more than Python 3.8.
"""

import hashlib
import json
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
API = json.loads((HERE / "api.json").read_text())
BEHAVIOUR = json.loads((HERE / "behaviour.json").read_text())
__version__ = BEHAVIOUR.get("version", API["version"])


def _parameters(signature):
    """Return (name, type, is optional) of each parameter in "(name: type = default, ...) -> type"."""
    parts, depth = [""], 0
    for character in re.match(r"\((.*)\) -> ", signature)[1]:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    found = [re.match(r"\s*(\w+): ([^=]+?)( = .*)?$", part) for part in parts]
    return [(match[1], match[2], match[3] is not None) for match in found if match]


def _bind(signature, args, kwargs):
    """Return the arguments by name, or None if the overload does not take them."""
    parameters = _parameters(signature)
    names = [name for name, _, _ in parameters]
    given = {name: args[i] for i, name in enumerate(names[: len(args)])}
    if len(args) > len(names) or set(given) & set(kwargs) or set(kwargs) - set(names):
        return None
    given.update(kwargs)
    fitting = all(_is(given[name], type_) if name in given else optional for name, type_, optional in parameters)
    return given if fitting else None


def _is(value, type_):
    if type_ in ("int", "typing.SupportsInt"):
        return isinstance(value, int)
    if type_ in ("str", "bool"):
        return type(value).__name__ == type_
    if type_ in ("buffer", "typing_extensions.Buffer"):
        return isinstance(value, (bytes, bytearray, memoryview))
    if type_ == "Dims":
        return isinstance(value, (tuple, list)) and all(isinstance(size, int) for size in value)
    return type_ in CLASSES and isinstance(value, CLASSES[type_])


def _method(owner, name, overloads):
    def method(self, *args, **kwargs):
        for signature in overloads:
            given = _bind(signature, args, kwargs)
            if given is not None:
                return _act(f"{owner}.{name}")(self, **given)
        raise TypeError(f"{name}(): incompatible arguments, the recorded ones are {overloads}, not {args} {kwargs}")

    return method


def _property(owner, name, recorded):
    def get(self):
        return self._state[name] if name in self._state else _act(f"{owner}.{name}")(self)

    def set_(self, value):
        if not _is(value, recorded["type"]):
            raise TypeError(f"{name} takes {recorded['type']}, not {value!r}")
        self._state[name] = value

    return property(get, set_ if recorded["settable"] else None)


def _act(name):
    if name not in ACTS:
        raise NotImplementedError(f"the stand-in does not act out {name}")
    return ACTS[name]


class _Member:
    """A member of an enumeration; int() tells its value, and it takes part in no arithmetic."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def __int__(self):
        return self.value


def _no_sequence(self, *_):
    raise TypeError(f"{type(self).__name__} has the buffer interface alone")


def _make_class(name, recorded):
    if "members" in recorded:
        cls = type(name, (_Member,), {})
        for member, value in recorded["members"].items():
            setattr(cls, member, cls(member, value))
        return cls
    bases = tuple(CLASSES[base] for base in recorded["bases"]) or (bytearray if recorded["buffer"] else object,)
    content = {"__slots__": () if recorded["bases"] else ("_state",), "__init__": _no_constructor}
    if recorded["buffer"]:
        names = {*recorded["properties"], *recorded["methods"], "_state"}
        content["__getattribute__"] = lambda self, item: _only(names, self, item)
        content.update(dict.fromkeys(("__len__", "__getitem__", "__iter__", "__contains__", "__add__"), _no_sequence))
    content.update((key, _property(name, key, value)) for key, value in recorded["properties"].items())
    content.update((key, _method(name, key, value)) for key, value in recorded["methods"].items())
    return type(name, bases, content)


def _no_constructor(self, *_, **__):
    raise TypeError(f"{type(self).__name__}: No constructor defined!")


def _only(names, self, item):
    if item not in names:
        raise AttributeError(f"the recorded {type(self).__name__} has no attribute '{item}'")
    return object.__getattribute__(self, item)


def _new(name, content=b"", **state):
    """Return an object as TensorRT makes it itself: the constructor is not run."""
    cls = CLASSES[name]
    made = cls.__new__(cls)
    if content:
        bytearray.__init__(made, content)
    made._state = state
    return made


CLASSES = {}
for _name in sorted(API["classes"], key=lambda name: bool(API["classes"][name].get("bases"))):
    CLASSES[_name] = _make_class(_name, API["classes"][_name])
for _name, _class in CLASSES.items():
    for _constant, _member in API["classes"][_name].get("constants", {}).items():
        setattr(_class, _constant, getattr(CLASSES["ILogger.Severity"], _member.split(".")[1]))
    if "." not in _name:
        globals()[_name] = _class


def _start_builder(self, logger):
    if not hasattr(logger, "_state"):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    self._state = {"logger": logger}
    if BEHAVIOUR.get("no_gpu"):
        logger.log(CLASSES["ILogger.Severity"].ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")


def _parse_from_file(self, model):
    self._state["network"]._state["model"] = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    return not BEHAVIOUR.get("parser_errors")


def _set_shape(self, **given):
    self._state["shapes"][given["input"]] = [given["min"], given["opt"], given["max"]]


def _add_optimization_profile(self, profile):
    shapes = profile._state["shapes"].values()
    if any(not low[i] <= usual[i] <= high[i] for low, usual, high in shapes for i in range(len(usual))):
        return -1
    self._state["profiles"].append(profile._state["shapes"])
    return len(self._state["profiles"]) - 1


def _create_timing_cache(self, serialized_timing_cache):
    content = bytes(serialized_timing_cache)
    return None if content == b"damaged" else _new("ITimingCache", loaded=content.decode())


def _set_timing_cache(self, cache, ignore_mismatch):
    self._state["timing"] = cache
    return not ignore_mismatch


def _build(self, network, config):
    typed = int(CLASSES["NetworkDefinitionCreationFlag"].STRONGLY_TYPED)
    if int(API["version"].split(".")[0]) < 11 and not network._state["flags"] & 1 << typed:
        raise AssertionError("the network is not strongly typed")
    timing = config._state["timing"]
    seen = {
        **{key: value for key, value in config._state.items() if isinstance(value, (int, list, dict))},
        "flags": [flag.name for flag in config._state["flags"]],
        "device": getattr(config._state.get("default_device_type"), "name", None),
        "timing": timing._state["loaded"] if timing else None,
        "model": network._state["model"],
    }
    with Path(BEHAVIOUR["log"]).open("a") as log:
        log.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    time.sleep(BEHAVIOUR.get("build_s", 0))
    if BEHAVIOUR.get("build_fails"):
        self._state["logger"].log(CLASSES["ILogger.Severity"].ERROR, "no implementation for node /layers.0/MatMul")
        return None
    seen.pop("timing")
    content = json.dumps([__version__, seen]).encode().ljust(BEHAVIOUR.get("engine_bytes", 0))
    return _new("IHostMemory", content, nbytes=len(content))


ACTS = {
    "ILogger.__init__": lambda self: setattr(self, "_state", {}),
    "Builder.__init__": _start_builder,
    "Builder.create_network": lambda self, flags=0: _new("INetworkDefinition", flags=flags),
    "Builder.create_builder_config": lambda self: _new("IBuilderConfig", profiles=[], pools={}, flags=[], timing=None),
    "Builder.create_optimization_profile": lambda self: _new("IOptimizationProfile", shapes={}),
    "Builder.num_DLA_cores": lambda self: BEHAVIOUR.get("dla_cores", 0),
    "Builder.build_serialized_network": _build,
    "OnnxParser.__init__": lambda self, network, logger: setattr(self, "_state", {"network": network}),
    "OnnxParser.parse_from_file": _parse_from_file,
    "OnnxParser.num_errors": lambda self: len(BEHAVIOUR.get("parser_errors", ())),
    "OnnxParser.get_error": lambda self, index: _new("ParserError", **BEHAVIOUR["parser_errors"][index]),
    "ParserError.node_name": lambda self: self._state["node_name"],
    "ParserError.node_operator": lambda self: self._state["node_operator"],
    "ParserError.desc": lambda self: self._state["desc"],
    "IOptimizationProfile.set_shape": _set_shape,
    "IBuilderConfig.add_optimization_profile": _add_optimization_profile,
    "IBuilderConfig.set_memory_pool_limit": lambda self, pool, pool_size: self._state["pools"].update(
        {pool.name: pool_size}
    ),
    "IBuilderConfig.set_flag": lambda self, flag: self._state["flags"].append(flag),
    "IBuilderConfig.create_timing_cache": _create_timing_cache,
    "IBuilderConfig.set_timing_cache": _set_timing_cache,
    "IBuilderConfig.get_timing_cache": lambda self: self._state["timing"],
    "ITimingCache.serialize": lambda self: _new("IHostMemory", b"timings of earlier builds"),
}
