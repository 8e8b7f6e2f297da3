"""Generates the parts of the documentation that come from code and results.

    python tools/documentation.py

It writes docs/flags.md (on the site, with a table for each program), docs/zoo.md, the
tables of docs/results.md, docs/performance.md and docs/serving.md (from
benchmarks/results), the files of examples/serving in docs/serving.md and the line
numbers of links in docs/architecture.md, such as
[`aspp`](../deeplab_tf/models/aspp.py#L30). A link leads to the definition, or to the
only line with its text. tests/test_documentation.py fails when pages are outdated.
"""

import importlib
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

import benchmarks.quiet_tensorflow  # noqa: E402, F401

from benchmarks import ablation_report, short_runs  # noqa: E402
from benchmarks.ablation_rows import ROWS  # noqa: E402
from benchmarks.measuring import markdown_table  # noqa: E402
from deeplab_tf import flags  # noqa: E402
from deeplab_tf.checkpoints.zoo import page as zoo_page  # noqa: E402
from deeplab_tf.config.options import GROUPS, WITHOUT_EFFECT  # noqa: E402
from deeplab_tf.programs import flag_help  # noqa: E402

# Programs, and the modules that define their flags.
PROGRAMS = {
    "train.py": "deeplab_tf.programs.train",
    "eval.py": "deeplab_tf.programs.eval",
    "vis.py": "deeplab_tf.programs.vis",
    "export.py": "deeplab_tf.programs.export",
    "deeplab_tf.predict": "deeplab_tf.programs.predict",
    "deeplab_tf.pretrain": "deeplab_tf.pretrain.program",
    "deeplab_tf.plan": "deeplab_tf.plan.program",
    "deeplab_tf.data.doctor": "deeplab_tf.programs.doctor",
    "deeplab_tf.data.worker": "deeplab_tf.programs.data_worker",
    "datasets.voc2012": "deeplab_tf.programs.convert.voc2012",
    "datasets.cityscapes": "deeplab_tf.programs.convert.cityscapes",
    "datasets.ade20k": "deeplab_tf.programs.convert.ade20k",
    "datasets.coco_voc": "deeplab_tf.programs.convert.coco_voc",
    "datasets.folder": "deeplab_tf.programs.convert.folder",
    "datasets.shapes": "deeplab_tf.programs.convert.shapes",
}
# Programs that build a model from flags; the page lists their common flags once.
BUILDERS = (
    *("train.py", "eval.py", "vis.py", "export.py"),
    *("deeplab_tf.predict", "deeplab_tf.plan"),
)
INTRODUCTION = """# Flags

`--help` of a program prints its flags in groups, and `--helpfull` also those without effect. The
documentation site lists the flags of all programs on this page, which `python
tools/documentation.py` generates. In train.py, eval.py, vis.py and export.py, "Ours" marks flags
that the official programs do not have. All other flags have the official names, meanings and defaults,
except those listed in [migration](migration.md#flags). Write a list as `--train_crop_size=513,513`
or repeat the flag; write a boolean as `--recompute`, `--norecompute` or `--recompute=false`.
Unknown flags are errors.
"""  # noqa: E501
# The parts of a result that a page shows, if not all; images show the rest.
_SHOWN = {
    "ablations": (0, 1, -1),
    "ablations_600": (0, -1),
    "profile_inference": (0, -1),
    "profile_training": (0, -1),
    "scaling": (1, 2, 3, -1),
}
_RESULT = re.compile(r"(<!-- result of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FILE = re.compile(r"(<!-- file (\S+) as (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\[`([^`]+)`\]\(\.\./([^)#]+)#L\d+\)")


def format_command(program: str) -> str:
    """Returns the command that starts a program."""
    return f"python {program}" if program.endswith(".py") else f"python -m {program}"


def list_flag_rows(program: str) -> dict[str, tuple[str, ...]]:
    """Returns group, value, default and meaning of each flag, by name."""
    values = importlib.import_module(PROGRAMS[program]).define_flags()
    groups = flag_help.group_flags(values).items()
    return {
        flag.name: _make_flag_row(group, flag) for group, own in groups for flag in own
    }


def _make_flag_row(group: str, flag) -> tuple[str, ...]:
    """Returns group, value, default and meaning of a flag, for a table."""
    default = flag_help.format_default(flag)
    if flags.is_required(flag):
        default = "required"
    elif default:
        default = f"`{default}`"
    value = flag_help.placeholder(flag).replace("|", ", ") or "boolean"
    return group, value, default, flag_help.help_text(flag).replace("|", "\\|")


def format_flags_page(on_site: bool = False) -> str:
    """Returns the text of docs/flags.md.

    `on_site` adds tables of all flags; flags that programs share are in one table.
    """
    all_rows = {program: list_flag_rows(program) for program in PROGRAMS}
    every = {program: set(rows.items()) for program, rows in all_rows.items()}
    dead = {flag for own in every.values() for flag in own if _is_dead(flag[1])}
    model = set.intersection(*(every[program] for program in BUILDERS)) - dead
    text = f"Flags of {_join_commands(BUILDERS)}."
    in_order = [flag for flag in all_rows["train.py"].items() if flag in model]
    parts = [_format_table("The model", text, dict(in_order))]
    listed = {"The model": model}
    for program, own in every.items():
        text, new = f"`{format_command(program)}`.", own - dead
        for section, known in listed.items():
            if repeated := new & known:
                names = ", ".join(f"`--{name}`" for name, _ in sorted(repeated))
                names = "all flags" if repeated == model else names
                text += f" As in [{section}](#{_make_anchor(section)}): {names}."
                new -= known
        in_order = [flag for flag in all_rows[program].items() if flag in new]
        parts.append(_format_table(program, text, dict(in_order)))
        listed[program] = new
    tables = parts if on_site else []
    return "\n".join([INTRODUCTION, *tables, _format_dead_table(dict(dead))])


def _make_anchor(heading: str) -> str:
    """Returns the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")


def _is_dead(row: tuple[str, ...]) -> bool:
    """Returns whether a flag has no effect."""
    return row[0] == WITHOUT_EFFECT


def _join_commands(names) -> str:
    *first, last = (f"`{format_command(name)}`" for name in names)
    return f"{', '.join(first)} and {last}"


def _format_table(title: str, text: str, rows: dict) -> str:
    lines: list[list[str]] = []
    for group in GROUPS:
        own = [name for name, row in rows.items() if row[0] == group]
        lines += [[f"**{group}**", "", "", ""]] if own else []
        lines += [[f"`--{name}`", *rows[name][1:]] for name in own]
    table = markdown_table(["flag", "value", "default", "meaning"], lines)
    return f"## {title}\n\n{text}\n\n{table}\n"


def _format_dead_table(rows: dict) -> str:
    """Returns the table of official flags without effect."""
    flags: dict[str, list[str]] = {}
    for name in sorted(rows):
        reason = rows[name][-1].removeprefix(f"{WITHOUT_EFFECT}: ")
        flags.setdefault(reason, []).append(f"`--{name}`")
    table = markdown_table(
        ["flag", "why"], ([", ".join(names), why] for why, names in flags.items())
    )
    text = "These official flags are accepted with a warning."
    return f"## Without effect\n\n{text}\n\n{table}\n"


def fill_results(page: str) -> str:
    """Fills each `<!-- result of NAME -->` block from benchmarks/results."""
    return _RESULT.sub(
        lambda mark: f"{mark[1]}\n{_select_parts(mark[2])}\n{mark[3]}", page
    )


def fill_files(page: str) -> str:
    """Fills each `<!-- file PATH as NAME -->` block with a command that writes it."""

    def format_block(mark: re.Match) -> str:
        text = (ROOT / mark[2]).read_text()
        command = f"```sh\ncat > {mark[3]} <<'END'\n{text}END\n```"
        return f"{mark[1]}\n{command}\n\n{mark[4]}"

    return _FILE.sub(format_block, page)


def _select_parts(program: str) -> str:
    """Returns those paragraphs of a result that the page shows."""
    parts = _read_result(program).rstrip().split("\n\n")
    shown = _SHOWN.get(program, range(len(parts)))
    return "\n\n".join(parts[i] for i in shown) + "\n"


def _read_result(program: str) -> str:
    """Returns the stored tables of a benchmark."""
    folder = ROOT / "benchmarks/results"
    # ablations_600 has two rows, trained for longer.
    tables = {
        "ablations": ablation_report.format_markdown,
        "ablations_600": ablation_report.format_trimap_markdown,
    }
    if program in tables:
        return tables[program](short_runs.read_results(str(folder / program), ROWS))
    if program == "camvid":
        return _format_scores(folder / program)
    return json.loads((folder / f"{program}.json").read_text())["text"] + "\n"


def _format_scores(folder: pathlib.Path) -> str:
    """Returns a table of the metrics.json files in a folder."""
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


def update_line_numbers(page: str) -> str:
    """Updates the line numbers of links into the code.

    Raises:
        ValueError: if the text of a link is missing or ambiguous in its file.
    """
    return _LINK.sub(lambda link: _format_link(link[1], link[2]), page)


def _format_link(text: str, path: str) -> str:
    return f"[`{text}`](../{path}#L{_find_line(text, path)})"


def _find_line(text: str, path: str) -> int:
    """Returns the number of the line that defines a name or contains a text.

    Raises:
        ValueError: unless there is exactly one such line.
    """
    lines = (ROOT / path).read_text().splitlines()
    name = re.escape(text.rpartition(".")[2])
    definition = re.compile(rf"\s*(def|class) {name}\b|{name}( =|:)")
    found = [i for i, line in enumerate(lines, 1) if definition.match(line)]
    found = found or [i for i, line in enumerate(lines, 1) if text in line]
    if len(found) != 1:
        raise ValueError(f"{text!r} is {len(found)} times in {path}; a link needs one")
    return found[0]


def generate_pages() -> dict[pathlib.Path, str]:
    """Returns the generated text of each page."""
    architecture = ROOT / "docs/architecture.md"
    names = ("results", "performance", "serving")
    measured = [ROOT / f"docs/{name}.md" for name in names]
    return {
        ROOT / "docs/flags.md": format_flags_page(),
        ROOT / zoo_page.PAGE: zoo_page.format_page(ROOT),
        architecture: update_line_numbers(architecture.read_text()),
        **{page: fill_files(fill_results(page.read_text())) for page in measured},
    }


if __name__ == "__main__":
    for path, text in generate_pages().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
