"""tools/eval_voc.py: published numbers from published files, and that every mistake ends in one message."""

import gzip
import json
import re
from pathlib import Path

import pytest

from ohem_caffe_port.data.pascal_voc import VOC_CLASSES

DATA = Path(__file__).resolve().parents[1] / "data" / "evaluate"
EVAL = Path(__file__).resolve().parents[3] / "shared" / "eval" / "voc2007_test"
XML = "<annotation>%s</annotation>"
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)
ONE_CLASS = ("--detections", "found", "--classes", "person")


@pytest.fixture
def place(workspace):
    """The workspace with a VOC 2007 devkit in ``kit``; ``place.annotate(image, [(class, difficult, x1, y1, x2, y2)])``
    and ``place.list(images)`` fill it, ``place.score(*options)`` runs the tool."""

    def annotate(image, objects):
        text = "".join(OBJECT.format(*values) for values in objects)
        workspace.write(f"kit/VOC2007/Annotations/{image}.xml", XML % text)

    def images(names, image_set="test"):
        workspace.write(f"kit/VOC2007/ImageSets/Main/{image_set}.txt", "".join(f"{name}\n" for name in names))

    def score(*options):
        return workspace.run(workspace.tools.eval_voc, ["--devkit", "kit", *options])

    workspace.annotate, workspace.list, workspace.score = annotate, images, score
    return workspace


@pytest.fixture
def people(place):
    """Two images with a person each; one is found, and so is something that is none."""
    for image in ("a", "b"):
        place.annotate(image, [("person", 0, 11, 11, 30, 30)])
    place.list(["a", "b"])
    place.write("found/comp4_det_test_person.txt", "a 0.9 11 11 30 30\na 0.5 1 1 5 5\n")
    return place


# ---- the good path


def test_published_detections(place):
    objects = {}
    for line in (DATA / "voc2007_test/objects.txt").read_text().splitlines():
        image, *values = line.split()
        objects.setdefault(image, []).append(values)
    for name in ("bus", "cow"):
        packed = (DATA / f"voc2007_test/comp4_det_test_{name}.txt.gz").read_bytes()
        text = gzip.decompress(packed).decode()
        for line in text.splitlines():
            objects.setdefault(line.split()[0], [])
        if name == "bus":
            place.write("found/comp4_det_test_bus.txt.gz", packed)
        else:
            place.write("found/comp4_det_test_cow.txt", text)
    for image, values in objects.items():
        place.annotate(image, values)
    place.list(objects)
    done = place.score("--detections", "found", "--classes", "cow", "bus", "--json", "ap.json")
    assert (done.code, done.err, done.new) == (0, "", {"ap.json"})
    expected = json.loads((DATA / "voc2007_test/expected.json").read_text())
    found = json.loads(Path("ap.json").read_text())
    assert (found["imdb"], found["detections"], found["iou"]) == ("voc_2007_test", "comp4_det_test", 0.5)
    for key in ("num_positives", "num_detections"):
        assert found[key] == expected[key]
    for name in ("bus", "cow"):
        assert found["ap11"][name] == expected["ap11"][name]
        assert found["ap_area"][name] == pytest.approx(expected["ap_area"][name], abs=2e-6)
    assert found["ap11"]["mean"] == pytest.approx(sum(expected["ap11"].values()) / 2)
    assert re.search(r"bus *│ *0.7787 *│ *0.8124 *│ *213 *│ *1321 *│ *0.8967", done.out)
    assert re.search(r"mAP *│ *0.7849 *│ *0.8125 ", done.out)
    assert "VOC 2007's own rule: 11 points" in done.out


@pytest.mark.parametrize("iou", ["0.1", "0.3", "0.5", "0.75"])
def test_pascal_toy(place, iou):
    """Its boxes are x y w h, and its x + w, y + h the last pixel (tests/data/evaluate/SOURCE.md)."""
    toy = json.loads((DATA / "pascal_toy.json").read_text())

    def corners(x, y, w, h):
        return int(x), int(y), int(x + w), int(y + h)

    for image, boxes in toy["gts"].items():
        place.annotate(image, [("person", 0, *corners(*box)) for box in boxes])
    place.list(toy["gts"])
    lines = [f"{image} {s} {' '.join(map(str, corners(*box)))}\n" for image, d in toy["dets"].items() for s, *box in d]
    place.write("found/comp4_det_test_person.txt", "".join(lines))
    assert place.score(*ONE_CLASS, "--iou", iou, "--json", "x.json").code == 0
    found = json.loads(Path("x.json").read_text())
    assert found["ap11"]["person"] == pytest.approx(toy["ap11"][iou], abs=1e-10)
    assert found["ap_area"]["person"] == pytest.approx(toy["ap_every_point"][iou], abs=1e-10)


@pytest.mark.skipif(not EVAL.is_dir(), reason="needs ../shared/eval beside the checkout")
def test_all_of_voc_2007_test(place):
    """The folder has Annotations and ImageSets, and no VOC2007 around them."""
    done = place.score("--devkit", EVAL, "--detections", EVAL / "detections", "--json", "x.json")
    assert done.code == 0
    found, expected = (json.loads(path.read_text()) for path in (Path("x.json"), EVAL / "expected.json"))
    assert found["ap11"] == expected["ap11"]
    assert found["ap_area"] == pytest.approx(expected["ap_area"], abs=2e-6, rel=0)
    assert found["num_positives"] == expected["num_positives"]


def test_classes_without_objects_and_without_detections(people):
    for name in VOC_CLASSES[1:]:
        if name != "person":
            people.write(f"found/comp4_det_test_{name}.txt")
    people.annotate("b", [("person", 0, 11, 11, 30, 30), ("dog", 0, 1, 1, 9, 9), ("cat", 1, 1, 1, 9, 9)])
    done = people.score("--detections", "found", "--json", "x.json")
    assert done.code == 0
    found = json.loads(Path("x.json").read_text())["ap_area"]
    assert {name: ap for name, ap in found.items() if ap is not None} == {"dog": 0, "person": 0.5, "mean": 0.25}
    assert re.search(r"cat *│ *no objects *│ *no objects *│ *0 *│ *0 *│ *│", done.out)


def test_what_the_names_say(people):
    """Other image sets, other runs and other classes are mentioned."""
    people.write("found/comp3_det_val_person.txt", "a 0.9 11 11 30 30\n")
    people.write("found/comp4_det_test_unicorn.txt", "a 0.9 11 11 30 30\n")
    done = people.score(*ONE_CLASS)
    assert done.code == 0
    assert "note: passed over: comp3_det_val (see --run)" in done.out
    assert "note: of no class of voc_2007_test: comp4_det_test_unicorn.txt" in done.out
    done = people.score(*ONE_CLASS, "--run", "comp3_det_val")
    assert done.code == 0
    assert "note: the files are named after the image set 'val', voc_2007_test is 'test'" in done.out


# ---- bad input


def untouched(w):
    pass


def write(path, content=b""):
    return lambda w: w.write(path, content)


PERSON = "found/comp4_det_test_person.txt"
BAD = {
    "no folder": (untouched, "--detections nix", ["nix: there is no such folder"]),
    "a file": (untouched, f"--detections {PERSON}", ["there is no such folder"]),
    "an empty folder": (lambda w: Path("e").mkdir(), "--detections e", ["e: has no files named comp4_det_<image set>"]),
    "classes missing": (untouched, "", ["found: has no file comp4_det_test_aeroplane.txt, nor those of 18 more of 20"]),
    "a class twice": (write(PERSON + ".gz", gzip.compress(b"")), "--classes person", ["'person' is there twice"]),
    "several runs": (
        write("found/comp4-7_det_test_person.txt"), "--classes person", ["holds several runs: comp4-7_det_test, "],
    ),
    "no such run": (untouched, "--classes person --run comp4_det_val", ["found: has no files named comp4_det_val_"]),
    "no such class": (untouched, "--classes persom", ["has no class 'persom'", "Did you mean 'person'?"]),
    "a short line": (write(PERSON, "a 0.5 1 2 3 4\na 0.5 1 2\n"), "--classes person", [f"{PERSON}:2: 'a 0.5 1 2'"]),
    "no number": (write(PERSON, "a high 1 2 3 4\n"), "--classes person", [f"{PERSON}:1: 'a high 1 2 3 4' is not a"]),
    "nan": (write(PERSON, "a 0.5 nan 2 3 4\n"), "--classes person", [f"{PERSON}:1:"]),
    "binary": (write(PERSON, b"\xff\xfe\x00"), "--classes person", [f"{PERSON}: cannot be read"]),
    "a broken gz": (
        lambda w: (w.write("g/comp4_det_test_person.txt.gz", b"no gzip")), "--detections g --classes person",
        ["g/comp4_det_test_person.txt.gz: cannot be read"],
    ),
    "images of another set": (
        write(PERSON, "a 1 1 1 2 2\nz 1 1 1 2 2\n"), "--classes person",
        ["1 of 2 detections of class 'person' are on images without annotation, the first on 'z'"],
    ),
    "no devkit": (untouched, "--devkit found", ["no VOC 2007 devkit found; looked for found/VOC2007"]),
    "another year": (untouched, "--imdb voc_2012_val", ["no VOC 2012 devkit found"]),
    "no image set": (untouched, "--imdb voc_2007_val", ["val.txt: image set not found", "test"]),
    "an empty image set": (lambda w: w.list([]), "--classes person", ["test.txt: the image set is empty"]),
    "annotation missing": (lambda w: w.list(["a", "c"]), "--classes person", ["c.xml: annotation not found"]),
    "annotation broken": (
        write("kit/VOC2007/Annotations/b.xml", "<annotation><object>"), "--classes person", ["b.xml:1: broken XML"],
    ),
    "an object without a box": (
        write("kit/VOC2007/Annotations/b.xml", XML % "<object><name>dog</name></object>"), "--classes person",
        ["b.xml: bndbox/xmin: object 1: missing"],
    ),
    "unknown imdb": (untouched, "--imdb voc_2007_tset", ["unknown imdb 'voc_2007_tset'"]),
    "a joined imdb": (
        lambda w: w.list(["a"], "val"), "--imdb voc_2007_test+voc_2007_val", ["not one image set of VOC's form"],
    ),
    "no public ground truth": (
        lambda w: (w.write("kit/VOC2012/ImageSets/Main/test.txt", "a\n")), "--imdb voc_2012_test",
        ["'voc_2012_test' has no public ground truth"],
    ),
    "iou of 1": (untouched, "--iou 1", ["1: an overlap is from 0 to below 1"]),
    "iou nan": (untouched, "--iou nan", ["nan: an overlap is"]),
    "json nowhere": (untouched, "--json nowhere/x.json", ["nowhere/x.json: --json: no file can be written there"]),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "options", "words"), [pytest.param(*case, id=name) for name, case in BAD.items()])
def test_a_mistake_ends_in_one_message(people, prepare, options, words):
    prepare(people)
    people.score("--detections", "found", *options.split()).ended_in_one_message(words)
