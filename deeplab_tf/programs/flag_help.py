"""Formats `--help` and `--version` without importing TensorFlow."""

import importlib.metadata
import platform
import re
import textwrap
from collections.abc import Iterator

from absl import flags as absl_flags

import deeplab_tf
from deeplab_tf import flags
from deeplab_tf.config.options import GROUPS, WITHOUT_EFFECT

HELP = ("--help", "-help", "-h", "--helpshort")
_WIDTH = 80
_SYNTAX = (
    "Write a list as --flag=1,2 or repeat the flag; write a boolean as --flag, "
    "--noflag or --flag=false."
)
_OURS = '"Ours" marks flags that the official DeepLab programs do not have. '
# Added by absl.
_REPEATED = "repeat this option to specify a list of values"
_NUMBERS = {"int": "INTEGER", "float": "NUMBER", "multi int": "INTEGER"}


def format_requested_help(
    doc: str, values: absl_flags.FlagValues, argv: list[str]
) -> str:
    """Returns the text that --help, --helpfull or --version asks for, else ""."""
    given = {argument.partition("=")[0] for argument in argv[1:]}
    if "--version" in given and "version" not in values:
        return describe_version()
    if "--helpfull" in given:
        return format_help(doc, values, everything=True)
    return format_help(doc, values) if given & {*HELP} else ""


def describe_version() -> str:
    """Returns the versions of the package and of what it runs on."""
    found = [f"Python {platform.python_version()}"]
    for name in ("tensorflow", "keras", "numpy"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return f"deeplab_tf {deeplab_tf.__version__} ({', '.join(found)})"


def format_help(
    doc: str, values: absl_flags.FlagValues, everything: bool = False
) -> str:
    """Returns the help of a program: its docstring, and its flags by group.

    Flags without effect are only listed with `everything`.
    """
    parts = [doc.rstrip()]
    for group, members in group_flags(values).items():
        if everything or group != WITHOUT_EFFECT:
            parts.append("\n".join([f"{group}:", *map(_describe, members)]))
        else:
            parts.append(
                f"--helpfull also lists {len(members)} official flags that have no "
                "effect."
            )
    if len(parts) > 1:
        ours = _OURS if any("Ours: " in part for part in parts) else ""
        parts.append(textwrap.fill(ours + _SYNTAX, _WIDTH))
    return "\n\n".join(parts)


def group_flags(values: absl_flags.FlagValues) -> dict[str, list[absl_flags.Flag]]:
    """Returns the flags of each group; in each, required ones come first."""
    # absl adds flags of its own to other modules.
    modules = values.flags_by_module_dict()
    return {
        group: sorted(modules[group], key=lambda flag: not flags.is_required(flag))
        for group in GROUPS
        if group in modules
    }


def list_names(values: absl_flags.FlagValues) -> list[str]:
    """Returns the flags, such as `--jit`, except those without effect."""
    groups = group_flags(values).items()
    return [
        f"--{f.name}" for name, own in groups for f in own if name != WITHOUT_EFFECT
    ]


def placeholder(flag: absl_flags.Flag) -> str:
    """Returns the choices of a flag or the kind of its value; "" for a boolean."""
    if choices := getattr(flag.parser, "enum_values", None):
        return "|".join(choices)
    kind = flag.flag_type()
    if kind == "bool":
        return ""
    if kind in _NUMBERS:
        return _NUMBERS[kind]
    if special := getattr(flag, "placeholder", ""):
        return special
    last = flag.name.rpartition("_")[2].upper()
    is_list = kind.startswith(("multi", "comma"))
    singular = re.sub("(?<=SS)ES$|S$", "", re.sub("IES$", "Y", last))
    return f"{singular},..." if is_list else last


def format_default(flag: absl_flags.Flag) -> str:
    """Returns the default of a flag as it is given, or "" if it has none."""
    if flag.default is None:
        return ""
    if isinstance(flag.default, list):
        return ",".join(map(str, flag.default))
    return (
        str(flag.default).lower() if flag.flag_type() == "bool" else str(flag.default)
    )


def help_text(flag: absl_flags.Flag) -> str:
    """Returns the meaning of a flag as one line."""
    text = " ".join(str(flag.help).replace(_REPEATED, "").split())
    return re.sub(r"^<[\w|]+>: ", "", text).removesuffix(";")


def _describe(flag: absl_flags.Flag) -> str:
    return "\n".join(_describe_lines(flag))


def _describe_lines(flag: absl_flags.Flag) -> Iterator[str]:
    """Yields a flag's name and default, and its wrapped meaning."""
    kind, default = placeholder(flag), format_default(flag)
    name = f"  --{flag.name}={kind}" if kind else f"  --[no]{flag.name}"
    if flags.is_required(flag):
        name += " (required)"
    elif default:
        name += f" (default: {default})"
    yield name
    indent = 6 * " "
    yield textwrap.fill(
        help_text(flag),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
