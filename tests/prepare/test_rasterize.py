"""One image's instances: exactly pycocotools' pixels, the painting order, and what is refused."""

import json

import numpy as np
import pytest
from cocoseg.prepare.outlines import BadAnnotation, Instances, decode_counts
from cocoseg.prepare.rasterize import PaintRules, rasterize
from cocoseg.shards.decode import decode_mask
from cocoseg.shards.png import encode_mask
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 16, 12
RULES = PaintRules(overlap="area", crowd="paint", ignore_index=255)


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def instance(segmentation, train_id=1, crowd=False):
    raw = segmentation if isinstance(segmentation, str) else json.dumps(segmentation)
    return train_id, crowd, raw.encode()


def gathered(instances):
    """The instances of one image; their ids count down from 4711."""
    train_ids, crowds, raws = zip(*instances, strict=True) if instances else ((), (), ())
    ids = tuple(range(4711, 4711 - len(instances), -1))
    return Instances(ids, train_ids, crowds, b"[" + b",".join(raws) + b"]")


def paint(*instances, overlap="area", crowd="paint", **rules):
    return rasterize(gathered(instances), WIDTH, HEIGHT, PaintRules(overlap, crowd, 255, **rules))


# ---- what an instance may not be


def rle(counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ("[[]]", "bad-polygon"),
        ("[[1,1,5,1,5,5],[]]", "bad-polygon"),
        ("[[1,1]]", "bad-polygon"),
        ("[[1,1,5,5]]", "bad-polygon"),  # pycocotools takes it for a box
        ("[[1,1,5,1,5]]", "bad-polygon"),
        ("[[1,1,5,1,5,5,1]]", "bad-polygon"),
        ("[1,1,5,1,5]", "bad-polygon"),
        ("[[1,1],[5,1],[5,5]]", "bad-polygon"),
        ("[[[1,1],[5,1]]]", "bad-polygon"),
        ('[["one",1,5,1,5,5]]', "bad-polygon"),
        ("[[true,1,5,1,5,5]]", "bad-polygon"),
        ("[[null,1,5,1,5,5]]", "bad-polygon"),
        ('[{"size":[12,16],"counts":[192]}]', "bad-polygon"),
        ("[[1e999,1,5,1,5,5]]", "bad-segmentation"),
        ("[[1e9,1,5,1,5,5]]", "coordinates-far-off"),
        ("[[1,-1e308,5,1,5,5]]", "coordinates-far-off"),
        pytest.param(f"[[{'9' * 400},1,5,1,5,5]]", "coordinates-far-off", id="400 digits"),
        ("[[32.01,1,5,1,5,5]]", "coordinates-far-off"),
        ("[[1,-16.01,5,1,5,5]]", "coordinates-far-off"),
        ('"abc"', "bad-segmentation"),
        ("5", "bad-segmentation"),
        ("true", "bad-segmentation"),
        (rle([10, 20]), "rle-sum-mismatch"),
        (rle([193]), "rle-sum-mismatch"),
        (rle([]), "rle-sum-mismatch"),
        (rle(""), "rle-sum-mismatch"),
        (rle([2**64, 192]), "rle-sum-mismatch"),
        (rle([192], (WIDTH, HEIGHT)), "rle-size-mismatch"),
        (rle([192], (1, 192)), "rle-size-mismatch"),
        (rle([192], (12.5, 16)), "bad-rle"),
        (rle([192], (12,)), "bad-rle"),
        ({"counts": [192]}, "bad-rle"),
        ({"size": [HEIGHT, WIDTH]}, "bad-rle"),
        (rle([-1, 193]), "bad-rle"),
        (rle([96.5, 95.5]), "bad-rle"),
        (rle([True, 191]), "bad-rle"),
        (rle(None), "bad-rle"),
        (rle("é"), "bad-rle"),
        (rle(" "), "bad-rle"),
        (rle("PP"), "bad-rle"),  # ends inside a number
        (rle("o" * 40), "bad-rle"),
        (rle("P6\x00"), "bad-rle"),
        pytest.param(rle([192], (10**4000, 16)), "rle-size-mismatch", id="size of 4,000 digits"),
        pytest.param(rle([192], list(range(9999))), "bad-rle", id="size of 9,999 numbers"),
        pytest.param(rle([int("9" * 4299)] * 99), "rle-sum-mismatch", id="sum of 4,301 digits"),
        pytest.param("[[-16,0,32,0]]".replace("]]", ",-16,1,32,1" * 150_000 + "]]"), "bad-polygon",
                     id="an outline of 14 million pixels"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rules", [RULES, PaintRules("order", "drop", 255)], ids=["paint", "drop"])
def test_a_bad_segmentation_has_its_reason_even_where_it_would_not_be_painted(
    segmentation, reason, rules
):
    good = instance(box(1, 1, 3, 3))
    with pytest.raises(BadAnnotation) as bad:
        rasterize(gathered([good, instance(segmentation, crowd=True)]), WIDTH, HEIGHT, rules)
    assert bad.value.reason == reason
    assert bad.value.annotation_id == 4710
    assert 0 < len(bad.value.detail) < 200


@pytest.mark.parametrize("raw", [b'"\xff"', b'{"size":[12,16],"counts":"\xff"}', b'{"\xff":1}'])
def test_bytes_that_are_no_utf_8_are_no_crash(raw):
    one = Instances((5,), (1,), (False,), b"[" + raw + b"]")  # the reader passes them on unread
    with pytest.raises(BadAnnotation) as bad:
        rasterize(one, WIDTH, HEIGHT, RULES)
    assert (bad.value.reason, bad.value.annotation_id) == ("bad-segmentation", 5)


def test_a_segmentation_nested_too_deep_is_no_crash():
    with pytest.raises(BadAnnotation, match="recursion"):
        paint(instance("[" * 5000 + "]" * 5000))


# ---- what is accepted and counted


@pytest.mark.parametrize(
    ("segmentation", "counted"),
    [
        ("null", "no_segmentation"),
        ("[]", "no_segmentation"),
        ("{}", "no_segmentation"),
        ("[[1,1,1,1,1,1]]", "zero_area"),
        ("[[5.2,5.2,5.3,5.2,5.3,5.3]]", "zero_area"),
        (rle([192]), "zero_area"),
        (box(-16, -16, 32, 32), "out_of_bounds"),
        (box(10, 10, 16.01, 12), "out_of_bounds"),
        (box(10, 10, 16, 12.01), "out_of_bounds"),
        (box(-0.01, 0, 16, 12), "out_of_bounds"),
    ],
)
def test_oddities_are_painted_as_far_as_they_go_and_counted(segmentation, counted, oracle):
    painting = paint(instance(segmentation))
    assert painting.counts == {"instances": 1, counted: 1}
    if counted == "out_of_bounds":
        assert np.array_equal(
            painting.mask.astype(bool), oracle.instance_pixels(segmentation, HEIGHT, WIDTH)
        )
    else:
        assert not painting.mask.any()


def test_an_instance_on_the_very_border_is_not_out_of_bounds():
    assert paint(instance(box(0, 0, 16, 12))).counts == {"instances": 1}


def test_no_instances_give_background_alone():
    painting = rasterize(Instances(), WIDTH, HEIGHT, RULES)
    assert (painting.mask.shape, painting.mask.dtype) == ((HEIGHT, WIDTH), np.uint8)
    assert not painting.mask.any()
    assert "crowds" not in painting.counts


# ---- who is on top

LARGE, SMALL = box(1, 1, 11, 11), box(3, 3, 6, 6)


@pytest.mark.parametrize("small_first", [True, False])
def test_the_smaller_area_is_on_top_wherever_it_stands(small_first):
    pair = [instance(LARGE, 1), instance(SMALL, 2)]
    mask = paint(*(reversed(pair) if small_first else pair)).mask
    assert (mask[4, 4], mask[8, 8]) == (2, 1)


def test_in_annotation_order_the_later_is_on_top():
    mask = paint(instance(SMALL, 2), instance(LARGE, 1), overlap="order").mask
    assert 2 not in mask


def test_of_equal_areas_the_later_is_on_top():
    left, right = box(1, 1, 5, 5), box(3, 3, 7, 7)
    assert paint(instance(left, 1), instance(right, 2)).mask[4, 4] == 2
    assert paint(instance(right, 2), instance(left, 1)).mask[4, 4] == 1


def test_area_is_counted_in_pixels_not_in_covered_polygons():
    twice = box(1, 1, 7, 7) + box(1, 1, 7, 7)  # 36 pixels, 72 by the sum of its parts
    between = box(1, 1, 8, 8)
    assert paint(instance(twice, 1), instance(between, 2)).mask[3, 3] == 1


@pytest.mark.parametrize(
    ("crowd", "on_the_single", "on_the_crowd"),
    [("paint", 2, 2), ("beneath", 1, 2), ("ignore", 1, 255), ("drop", 1, 0)],
)
def test_crowd_modes(crowd, on_the_single, on_the_crowd):
    single, region = instance(LARGE, 1), instance(box(4, 4, 14, 8), 2, crowd=True)
    for pair in ((single, region), (region, single)):
        painting = paint(*pair, crowd=crowd)
        assert painting.mask[5, 5] == on_the_single
        assert painting.mask[5, 13] == on_the_crowd
        assert painting.counts == {"instances": 2, "crowds": 1}


def test_a_class_dropped_to_background_still_hides_what_is_behind_it():
    mask = paint(instance(LARGE, 1), instance(SMALL, 0)).mask
    assert (mask[4, 4], mask[8, 8]) == (0, 1)


def test_an_ignored_class_is_painted_with_the_ignore_index():
    rules = PaintRules("area", "paint", 65535)
    painting = rasterize(
        gathered([instance(LARGE, 300), instance(SMALL, 65535)]), WIDTH, HEIGHT, rules
    )
    assert painting.mask.dtype == np.uint16
    assert set(np.unique(painting.mask)) == {0, 300, 65535}


# ---- exactly the pixels of the oracle


@st.composite
def scenes(draw):
    """(width, height, annotations): anything that the contract accepts, down to one pixel."""
    side = st.integers(1, 24)
    strip = st.tuples(st.just(1), st.integers(1, 200)).flatmap(st.permutations)
    width, height = draw(st.one_of(st.tuples(side, side), strip))
    limit = max(width, height)
    number = st.one_of(
        st.integers(-limit, 2 * limit),
        st.integers(0, limit).map(lambda v: v + 0.5),
        st.tuples(st.integers(0, 10 * limit), st.sampled_from([-np.inf, np.inf])).map(
            lambda pair: float(np.nextafter(pair[0] / 10, pair[1]))  # pycocotools rounds fifths
        ),
        st.floats(-limit, 2 * limit).map(lambda v: round(v, 2)),
        st.floats(0, limit),
    )
    point = st.tuples(number, number)
    anywhere = st.lists(point, min_size=3, max_size=8)
    collinear = st.tuples(point, point).map(lambda ends: [ends[0], ends[1], ends[0]])
    polygon = st.one_of(anywhere, collinear).map(lambda points: [v for p in points for v in p])
    pixels = hnp.arrays(np.uint8, (height, width), elements=st.integers(0, 1))
    segmentation = st.one_of(
        st.lists(polygon, min_size=1, max_size=3),
        pixels.map(uncompressed),
        pixels.map(compressed),
        st.tuples(pixels, st.integers(0, 2**32 - 1)).map(lambda pair: halting(*pair)),
    )
    annotation = st.fixed_dictionaries(
        {
            "segmentation": segmentation,
            "category_id": st.integers(0, 5),
            "iscrowd": st.integers(0, 1),
        }
    )
    return width, height, draw(st.lists(annotation, max_size=6))


def run_lengths(mask):
    """Pixels in turn off and on, down the columns, counted one by one."""
    runs, value = [0], 0
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def uncompressed(mask):
    return {"size": list(mask.shape), "counts": run_lengths(mask)}


def compressed(mask):
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode()}


def with_empty_runs(runs, rng):
    """The same pixels, with runs of no pixels at the start, in the middle and at the end."""
    runs = list(runs)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(0, len(runs) + 1))
        if place < len(runs) and rng.integers(2):
            cut = int(rng.integers(0, runs[place] + 1))
            runs[place : place + 1] = [cut, 0, runs[place] - cut]
        else:
            runs[place:place] = [0, 0]
    return runs


def in_letters(runs):
    """Compress runs as COCO does; `encode` of pycocotools never makes empty ones."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            low, value = value & 0x1F, value >> 5
            more = value != (-1 if low & 0x10 else 0)
            text += chr(48 + low + 0x20 * more)
            if not more:
                break
    return text


def halting(mask, seed):
    """RLE of either form with empty runs."""
    rng = np.random.default_rng(seed)
    runs = with_empty_runs(run_lengths(mask), rng)
    return {"size": list(mask.shape), "counts": in_letters(runs) if rng.integers(2) else runs}


def star(rng, width, height):
    """A star whose edges cross each other."""
    points = int(rng.integers(5, 60)) | 1
    angles = np.arange(points) * (points // 2) * 2 * np.pi / points + rng.random()
    return np.stack([np.cos(angles) * width, np.sin(angles) * height], 1) * rng.random() * 0.7


def spiral(rng, width, height):
    """A line of up to thousands of points that winds around itself."""
    points = int(rng.integers(3, 1 + rng.choice([40, 400, 4000])))
    angles = np.linspace(0, rng.uniform(1, 60), points)
    radii = np.linspace(0, rng.random(), points)
    return np.stack([np.cos(angles) * width, np.sin(angles) * height], 1) * radii[:, None]


def scribble(rng, width, height):
    return rng.uniform(-0.6, 0.6, (rng.integers(3, 30), 2)) * (width, height)


def hair(rng, width, height):
    """There and back on one line: no area, or hardly any."""
    ends = rng.uniform(-0.5, 0.5, (2, 2)) * (width, height)
    return ends[[0, 1, *rng.integers(0, 2, rng.integers(1, 9))]]


def crowded_scene(seed, count):
    """(width, height, annotations): hundreds of instances; drawing each one would take hours."""
    rng = np.random.default_rng(seed)
    sizes = [(1, 90), (90, 1), (64, 48), (97, 33), (3, 200), (160, 120)]
    width, height = sizes[rng.integers(len(sizes))]

    def polygon():
        shape = rng.choice([star, spiral, scribble, hair])
        points = shape(rng, width, height) + rng.uniform(0, 1, 2) * (width, height)
        points = points if rng.integers(3) else np.round(points * 2) / 2
        return np.clip(points, -max(width, height), 2 * max(width, height)).ravel().tolist()

    def segmentation():
        if rng.integers(3):
            return [polygon() for _ in range(rng.integers(1, 4))]
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask = np.zeros((height, width), np.uint8)
        part = mask[top : top + 1 + height // 3, left : left + 1 + width // 3]
        part[:] = rng.random(part.shape) < rng.choice([0.1, 0.9, 1])
        return rng.choice([uncompressed, compressed, lambda m: halting(m, rng.integers(2**32))])(
            mask
        )

    return width, height, [
        {
            "segmentation": segmentation(),
            "category_id": int(rng.integers(0, 6)),
            "iscrowd": int(rng.random() < 0.1),
        }
        for _ in range(count)
    ]  # fmt: skip


NARROW, WIDE = {i: i for i in range(6)}, {i: (0, 300, 65534, 256, 257, 65535)[i] for i in range(6)}
RANKS = st.dictionaries(st.sampled_from([1, 2, 3, 300, 65534, 256]), st.integers(1, 3), max_size=4)


def assert_painted_as_the_oracle_paints_it(oracle, scene, overlap, crowd, train_ids, ranks):
    width, height, annotations = scene
    instances = [
        instance(a["segmentation"], train_ids[a["category_id"]], bool(a["iscrowd"]))
        for a in annotations
    ]
    ignore_index = 65535 if train_ids is WIDE else 255
    rules = PaintRules(overlap, crowd, ignore_index, ranks)
    mask = rasterize(gathered(instances), width, height, rules).mask
    truth = oracle.paint(
        annotations, train_ids, height, width, overlap, crowd, ranks, ignored_as=ignore_index
    )
    assert (mask.dtype, mask.flags.f_contiguous) == (truth.dtype, True)
    assert np.array_equal(mask, truth)


def counted(mask):
    """(value, pixels) of a mask, by NumPy."""
    values, counts = np.unique(mask, return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("overlap", ["area", "order"])
@pytest.mark.parametrize("crowd", ["paint", "beneath", "ignore", "drop"])
@given(scene=scenes(), train_ids=st.sampled_from([NARROW, WIDE]), ranks=RANKS)
@example((1, 1, [{"segmentation": box(0, 0, 1, 1), "category_id": 3, "iscrowd": 0}]), NARROW, {})
@example((9, 1, [{"segmentation": box(2, 0, 5, 1), "category_id": 3, "iscrowd": 1}]), WIDE, {})
def test_every_scene_is_painted_as_the_oracle_paints_it(
    oracle, overlap, crowd, scene, train_ids, ranks
):
    assert_painted_as_the_oracle_paints_it(oracle, scene, overlap, crowd, train_ids, ranks)


@settings(max_examples=25)
@given(
    scene=st.builds(crowded_scene, st.integers(0, 2**32 - 1), st.integers(50, 300)),
    overlap=st.sampled_from(["area", "order"]),
    crowd=st.sampled_from(["paint", "beneath", "ignore", "drop"]),
    train_ids=st.sampled_from([NARROW, WIDE]),
    ranks=RANKS,
)
@example(crowded_scene(0, 300), "area", "paint", NARROW, {})
@example(crowded_scene(2, 300), "order", "ignore", WIDE, {300: 2, 256: 1})
def test_hundreds_of_instances_are_painted_as_the_oracle_paints_them(
    oracle, scene, overlap, crowd, train_ids, ranks
):
    assert_painted_as_the_oracle_paints_it(oracle, scene, overlap, crowd, train_ids, ranks)


@given(
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.integers(0, 1),
    )
)
@example(np.zeros((1, 1), np.uint8))
@example(np.ones((300, 400), np.uint8))
@example(np.pad(np.ones((1, 70_000), np.uint8), ((3, 0), (0, 9))))
def test_decode_counts_inverts_the_encoding_of_pycocotools(mask):
    assert decode_counts(compressed(mask)["counts"]).tolist() == run_lengths(mask)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_text_as_counts_is_painted_as_pycocotools_would_or_refused(text):
    try:
        painting = paint(instance(rle(text)))
    except BadAnnotation:
        return
    truth = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": text.encode()})
    assert np.array_equal(painting.mask, truth)
    assert painting.class_pixels == counted(truth)


# ---- the file


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
    )
)
def test_a_mask_file_holds_every_value_of_its_mask(mask):
    content = encode_mask(mask)
    color_type, bit_depth = content[25], content[24]  # of the PNG's IHDR
    assert (color_type, bit_depth) == (0, 8 * mask.dtype.itemsize)  # gray, no palette
    read = decode_mask(content, "here", expected=mask.shape)
    assert read.dtype == mask.dtype
    assert np.array_equal(read, mask)
