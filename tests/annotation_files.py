"""Writes the same objects in the format of each annotation tool.

The scene of an image is a list of `(name, left, top, right, bottom)` from back to
front: rectangles that cover the columns `left..right - 1`, so that every tool's rule
gives the same pixels.
"""

import base64
import io
import json

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
SCENES = {
    "a.jpg": [("cat", 5, 4, 15, 12), ("dog", 10, 8, 25, 20)],
    "sub/b.jpg": [("dog", 0, 0, 40, 10)],
    "sub/c.jpg": [],
}


def draw_truth(scene, ids, by_area=False):
    """Returns the label map of a scene, uint8 `[HEIGHT, WIDTH]`."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    if by_area:  # smaller ones on top
        scene = sorted(scene, key=lambda r: -(r[3] - r[1]) * (r[4] - r[2]))
    for name, left, top, right, bottom in scene:
        label[top:bottom, left:right] = ids[name]
    return label


def save_images(folder, names=tuple(SCENES)):
    """Writes images of the scenes' size."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(i).randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)


def list_corners(left, top, right, bottom):
    """Returns the corners of a rectangle, clockwise."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def labelme_shape(name, points, kind="polygon", **more):
    """Returns a shape of labelme."""
    shape = {"label": name, "points": points, "shape_type": kind, "group_id": None}
    return shape | {"flags": {}} | more


def labelme_file(image_path, shapes, **more):
    """Returns a labelme file."""
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imageData": None}
    content |= {"imagePath": image_path, "imageHeight": HEIGHT, "imageWidth": WIDTH}
    return content | more


def save_labelme(folder, scenes=SCENES):
    """Writes a JSON file for each image; outlines include their pixels."""
    for name, scene in scenes.items():
        shapes = [
            labelme_shape(label, list_corners(x0, y0, x1 - 1, y1 - 1))
            for label, x0, y0, x1, y1 in scene
        ]
        path = (folder / name).with_suffix(".json")
        _save(path, labelme_file(path.with_suffix(".jpg").name, shapes))
    return folder


def encode_labelme_mask(mask):
    """Returns the JSON of a mask shape."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def coco_content(scenes=SCENES, names=("cat", "dog"), first_id=3):
    """Returns the content of a COCO file; category ids have gaps."""
    ids = {name: first_id + 4 * i for i, name in enumerate(names)}
    images, annotations = [], []
    for image_id, (name, scene) in enumerate(scenes.items(), 100):
        images.append(
            {"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}
        )
        for label, *box in scene:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[label],
                    "segmentation": [np.ravel(list_corners(*box)).tolist()],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": ids[name], "name": name} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def save_coco(folder, scenes=SCENES):
    """Writes one COCO file."""
    _save(folder / "instances.json", coco_content(scenes))
    return folder / "instances.json"


def save_yolo(folder, scenes=SCENES, names=("cat", "dog")):
    """Writes a text file for each image, and the class names."""
    for name, scene in scenes.items():
        lines = []
        for label, *box in scene:
            points = np.array(list_corners(*box)) / (WIDTH, HEIGHT)
            words = [names.index(label), *(f"{x:.8f}" for x in points.ravel())]
            lines.append(" ".join(map(str, words)) + "\n")
        _save((folder / "labels" / name).with_suffix(".txt"), "".join(lines))
    _save(folder / "classes.txt", "".join(f"{name}\n" for name in names))
    return folder / "labels"


def encode_brush(mask):
    """Returns a mask in the run lengths of Label Studio, with runs and literals."""
    values = np.repeat(np.where(mask.ravel(), 255, 0), 4).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    start = 0
    while start < len(values):
        run = start
        while run < len(values) and values[run] == values[start]:
            run += 1
        count = run - start
        if count <= 8 and start % 3:  # literals
            bits += f"000{count - 1:03b}" + f"{values[start]:08b}" * count
        else:
            size = next(i for i, n in enumerate((3, 4, 8, 16)) if count <= 1 << n)
            bits += f"1{size:02b}{count - 1:0{(3, 4, 8, 16)[size]}b}{values[start]:08b}"
        start = run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio_task(name, results, upload=True):
    """Returns a task of Label Studio whose image was uploaded."""
    url = f"/data/upload/1/0123abcd-{name.rpartition('/')[2]}" if upload else name
    annotations = [{"id": 1, "was_cancelled": False, "result": results}]
    return {"id": 7, "data": {"image": url, "note": "x"}, "annotations": annotations}


def label_studio_result(kind, label, **value):
    """Returns a region of Label Studio."""
    return {
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": value | {kind: [label]},
    }


def save_label_studio(folder, scenes=SCENES):
    """Writes an export whose objects are polygons, boxes and brushes in turn."""
    tasks = []
    for name, scene in scenes.items():
        results = []
        for i, (label, x0, y0, x1, y1) in enumerate(scene):
            percent = np.array([100 / WIDTH, 100 / HEIGHT])
            corners = (np.array(list_corners(x0, y0, x1, y1)) * percent).tolist()
            x, y = corners[0]
            size = np.array([x1 - x0, y1 - y0]) * percent
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[y0:y1, x0:x1] = True
            kinds = [
                ("polygonlabels", {"points": corners, "closed": True}),
                ("brushlabels", {"format": "rle", "rle": encode_brush(mask)}),
                (
                    "rectanglelabels",
                    {"x": x, "y": y, "width": size[0], "height": size[1]},
                ),
            ]
            kind, value = kinds[(i + len(tasks)) % 3]
            results.append(label_studio_result(kind, label, **value))
        tasks.append(label_studio_task(name, results))
    _save(folder / "export.json", tasks)
    return folder / "export.json"


def cvat_content(images, labels=("cat", "dog")):
    """Returns a CVAT XML file with `images`, XML strings by name."""
    listed = "".join(
        f"<label><name>{name}</name><color>#0{i}80ff</color></label>"
        for i, name in enumerate(labels)
    )
    texts = "".join(
        f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}">'
        f"{text}</image>"
        for i, (name, text) in enumerate(images.items())
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta><task><labels>{listed}</labels></task></meta>{texts}</annotations>"
    )


def save_cvat(folder, scenes=SCENES):
    """Writes an export whose objects are polygons, boxes and masks in turn."""
    images = {}
    for name, scene in scenes.items():
        shapes = []
        for depth, (label, x0, y0, x1, y1) in enumerate(scene):
            points = ";".join(f"{x}.00,{y}.00" for x, y in list_corners(x0, y0, x1, y1))
            size = f'width="{x1 - x0}" height="{y1 - y0}"'
            kinds = [
                f'<polygon label="{label}" z_order="{depth}" points="{points}"/>',
                f'<mask label="{label}" z_order="{depth}" left="{x0}" top="{y0}" '
                f'{size} rle="0, {(x1 - x0) * (y1 - y0)}"/>',
                f'<box label="{label}" z_order="{depth}" xtl="{x0}" ytl="{y0}" '
                f'xbr="{x1}" ybr="{y1}"/>',
            ]
            shapes.insert(0, kinds[(depth + len(images)) % 3])  # z_order decides
        images[name] = "".join(shapes)
    _save(folder / "annotations.xml", cvat_content(images))
    return folder / "annotations.xml"


def via_region(label, **shape):
    """Returns a region of VIA."""
    return {"shape_attributes": shape, "region_attributes": {"kind": label}}


def save_via(folder, scenes=SCENES):
    """Writes a project whose objects are polygons and rectangles in turn."""
    images = {}
    for name, scene in scenes.items():
        regions = []
        for i, (label, x0, y0, x1, y1) in enumerate(scene):
            xs, ys = np.array(list_corners(x0, y0, x1, y1)).T.tolist()
            polygon = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            box = {"name": "rect", "x": x0, "y": y0, "width": x1 - x0}
            shape = (polygon, box | {"height": y1 - y0})[i % 2]
            regions.append(via_region(label, **shape))
        images[f"{name}123"] = {"filename": name, "size": 123, "regions": regions}
    options = {"options": {"dog": "", "cat": ""}, "type": "radio"}
    project = {"_via_settings": {}, "_via_img_metadata": images}
    _save(
        folder / "via.json",
        project | {"_via_attributes": {"region": {"kind": options}, "file": {}}},
    )
    return folder / "via.json"


def compress_counts(counts):
    """Returns run lengths in COCO's text format, written from its description."""
    text = ""
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(ord("0") + bits + 32 * more)
    return text


WRITERS = {
    "labelme": save_labelme,
    "COCO": save_coco,
    "YOLO": save_yolo,
    "Label Studio": save_label_studio,
    "CVAT": save_cvat,
    "VIA": save_via,
}
