"""Writes what the documentation takes from the code.

    python tools/documentation.py

That is all of docs/flags.md, the tables in docs/results.md and docs/performance.md,
from the files in benchmarks/results, and the line numbers of links such as
[`aspp`](../deeplab_tf/models/aspp.py#L30) in docs/architecture.md, which follow the
definition, or the only line with that text. tests/test_documentation.py tells when it
has to be run again.
"""

import importlib
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

import benchmarks.quiet_tensorflow  # noqa: E402, F401

from benchmarks import ablation_report  # noqa: E402
from benchmarks.measuring import markdown_table  # noqa: E402

# How a program is called, and the module with its flags.
PROGRAMS = {
    "train.py": "deeplab_tf.programs.train",
    "eval.py": "deeplab_tf.programs.eval",
    "export.py": "deeplab_tf.programs.export",
    "deeplab_tf.predict": "deeplab_tf.programs.predict",
    "deeplab_tf.pretrain": "deeplab_tf.pretrain.program",
    "deeplab_tf.plan": "deeplab_tf.plan.program",
    "deeplab_tf.data.doctor": "deeplab_tf.programs.doctor",
    "datasets.voc2012": "deeplab_tf.programs.convert.voc2012",
    "datasets.cityscapes": "deeplab_tf.programs.convert.cityscapes",
    "datasets.ade20k": "deeplab_tf.programs.convert.ade20k",
    "datasets.coco_voc": "deeplab_tf.programs.convert.coco_voc",
    "datasets.folder": "deeplab_tf.programs.convert.folder",
    "datasets.shapes": "deeplab_tf.programs.convert.shapes",
}
# The programs that build a model of flags; what all of them have is told once.
BUILDERS = ("train.py", "eval.py", "export.py", "deeplab_tf.predict", "deeplab_tf.plan")
INTRODUCTION = """# Flags

Written by `python tools/documentation.py` from the programs themselves, which tell the
same with `--help`. In train.py, eval.py and export.py "Ours" marks what the official
programs do not have; other names, and unless [migration](migration.md) says otherwise
their meanings and defaults, are the official ones. A list is written as
`--train_crop_size=513,513` or as a flag that is given several times, a boolean as
`--recompute`, `--norecompute` or `--recompute=false`. An unknown flag ends a program.
"""
_DEAD = "Without effect: "
_REPEATED = "repeat this option to specify a list of values"
_RESULT = re.compile(r"(<!-- result of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\[`([^`]+)`\]\(\.\./([^)#]+)#L\d+\)")


def command(program: str) -> str:
    """Returns what a user types to start a program."""
    return f"python {program}" if program.endswith(".py") else f"python -m {program}"


def flag_rows(program: str) -> dict[str, tuple[str, ...]]:
    """Returns type, default and meaning of each flag, by its name."""
    values = importlib.import_module(PROGRAMS[program]).define_flags()
    return {name: _row(values[name]) for name in values}


def _row(flag) -> tuple[str, ...]:
    text = " ".join(flag.help.replace(_REPEATED, "").split()).removesuffix(";")
    kind = flag.flag_type().split()[0].replace("multi", "list").replace("comma", "list")
    choices = re.match(r"<([\w|]+)>: ", text)
    if choices:
        text = text.removeprefix(choices[0])
        kind = choices[1].replace("|", ", ")
    default = "" if flag.default is None else _spelled(flag.default)
    return kind, default, text.replace("|", "\\|")


def _spelled(value) -> str:
    if isinstance(value, list):
        value = ",".join(map(str, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def flags_page() -> str:
    """Returns the text of docs/flags.md."""
    rows = {program: flag_rows(program) for program in PROGRAMS}
    first, *others = (set(rows[program].items()) for program in BUILDERS)
    shared = dict(first.intersection(*others))
    alive = {name: row for name, row in shared.items() if not _is_dead(row)}
    parts = [INTRODUCTION, _table("The model", f"Of {_listed(BUILDERS)}.", alive)]
    dead = {}
    for program, own in rows.items():
        own = {name: row for name, row in own.items() if name not in shared}
        dead |= {name: row for name, row in own.items() if _is_dead(row)}
        living = {name: row for name, row in own.items() if name not in dead}
        too = " Those of [the model](#the-model), too." if program in BUILDERS else ""
        parts.append(_table(program, f"`{command(program)}`.{too}", living))
    dead |= {name: row for name, row in shared.items() if _is_dead(row)}
    parts.append(_dead_table(dead))
    return "\n".join(parts)


def _is_dead(row: tuple[str, ...]) -> bool:
    return row[-1].startswith(_DEAD)


def _listed(names) -> str:
    *first, last = (f"`{command(name)}`" for name in names)
    return f"{', '.join(first)} and {last}"


def _table(title: str, text: str, rows: dict) -> str:
    names = ["flag", "type", "default", "meaning"]
    table = markdown_table(
        names, ([f"`--{name}`", *rows[name]] for name in sorted(rows))
    )
    return f"## {title}\n\n{text}\n\n{table}\n"


def _dead_table(rows: dict) -> str:
    flags: dict[str, list[str]] = {}
    for name in sorted(rows):
        reason = rows[name][-1].removeprefix(_DEAD)
        flags.setdefault(reason, []).append(f"`--{name}`")
    table = markdown_table(
        ["flag", "why"], ([", ".join(names), why] for why, names in flags.items())
    )
    text = "Official flags that are accepted, with a warning that says why."
    return f"## Without effect\n\n{text}\n\n{table}\n"


def with_results(page: str) -> str:
    """Returns a page with what programs of benchmarks/ wrote between its marks.

    A mark names the program; its results are in benchmarks/results.
    """
    return _RESULT.sub(lambda mark: f"{mark[1]}\n{_result(mark[2])}\n{mark[3]}", page)


def _result(program: str) -> str:
    folder = ROOT / "benchmarks/results"
    # Two rows of ablations_600, which were trained for longer.
    tables = {
        "ablations": ablation_report.markdown,
        "ablations_600": ablation_report.trimap_markdown,
    }
    if program in tables:
        return tables[program](ablation_report.read_results(str(folder / program)))
    if program == "camvid":
        return _scores(folder / program)
    return json.loads((folder / f"{program}.json").read_text())["text"] + "\n"


def _scores(folder: pathlib.Path) -> str:
    """Returns a table of the metrics that eval.py wrote into some files."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        metrics = json.loads(path.read_text())
        names, protocol = metrics["class_names"], metrics["protocol"]
        rows.append(
            [
                protocol["split"],
                ", ".join(f"{scale:g}" for scale in protocol["eval_scales"]),
                "yes" if protocol["add_flipped_images"] else "no",
                str(protocol["output_stride"]),
                *(
                    f"{100 * x:.1f}"
                    for x in (metrics["miou"], *metrics["iou_per_class"])
                ),
            ]
        )
    columns = ["split", "scales", "mirrored", "output stride", "mIoU", *names]
    return markdown_table(columns, rows) + "\n"


def with_line_numbers(page: str) -> str:
    """Returns a page whose links into the code lead to the right lines.

    Args:
        page: Text with links of a name, or of a piece of code, to a line of a file.

    Raises:
        ValueError: if a file does not have it, or has the text several times.
    """
    return _LINK.sub(lambda link: _link(link[1], link[2]), page)


def _link(text: str, path: str) -> str:
    return f"[`{text}`](../{path}#L{_line(text, path)})"


def _line(text: str, path: str) -> int:
    lines = (ROOT / path).read_text().splitlines()
    name = re.escape(text.rpartition(".")[2])
    definition = re.compile(rf"\s*(def|class) {name}\b|{name}( =|:)")
    found = [i for i, line in enumerate(lines, 1) if definition.match(line)]
    found = found or [i for i, line in enumerate(lines, 1) if text in line]
    if len(found) != 1:
        raise ValueError(f"{text!r} is {len(found)} times in {path}; a link needs one")
    return found[0]


def pages() -> dict[pathlib.Path, str]:
    """Returns what each page is to be."""
    architecture = ROOT / "docs/architecture.md"
    measured = [ROOT / "docs/results.md", ROOT / "docs/performance.md"]
    return {
        ROOT / "docs/flags.md": flags_page(),
        architecture: with_line_numbers(architecture.read_text()),
        **{page: with_results(page.read_text()) for page in measured},
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
