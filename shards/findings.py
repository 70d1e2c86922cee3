"""What `prepare` counts beside samples and pixels, in words."""

from collections.abc import Iterator, Mapping

_SHOWN_ELSEWHERE = ("instances", "quarantined")
_SENTENCES = {
    "absolute_names": "images whose file_name is an absolute path or a URL, found by its end",
    "beyond_limit": "images beyond --limit",
    "boxes_as_background": "boxes without a segmentation, painted as background",
    "boxes_ignored": "boxes without a segmentation, marked as ignored",
    "crowds": "crowd regions (iscrowd)",
    "duplicate_annotation_ids": "annotation ids that are given more than once",
    "encoded_names": "images found after percent-decoding their file_name",
    "exif_ambiguous": "images that fit their annotated size with and without the turn in EXIF",
    "flat_polygons": "polygons that are not in a list of polygons",
    "found_elsewhere": "images found under another folder, case or Unicode form of their name",
    "ids_numbered": "ids that are text, numbered in the order of the file",
    "named_by_url": "images without a file_name, found by their coco_url",
    "not_listed": "images that --only does not list",
    "no_segmentation": "instances without a segmentation, a box or an area",
    "non_finite_numbers": "NaN and Infinity in the annotation files",
    "numbers_as_text": "numbers written as text",
    "out_of_bounds": "instances that reach over the edge of their image",
    "paired_points": "polygons written as pairs of x and y",
    "photo_alpha": "images with transparency",
    "photo_animated": "images with several frames (the first one is taken)",
    "recoded_json": "annotation files in UTF-16 or UTF-32",
    "release_names": "images found under their name in another release of COCO",
    "repeated": "images that an earlier source has already",
    "repeated_categories": "categories that are given again, identical",
    "resized": "images shrunk to --max-side",
    "skipped_empty": "images without annotations, skipped",
    "turned_by_exif": "images turned as EXIF says",
    "upload_prefixes": "images found without the prefix that Label Studio adds to their file_name",
    "whole_floats": "whole numbers written as floats",
    "without_mask": "images without a mask, left out",
    "without_annotations": "images without annotations, all background",
    "zero_area": "instances that cover no pixel",
} | {f"photo_{mode}": f"images of mode {mode}" for mode in ("L", "P", "CMYK", "1", "LA", "RGBA")}


def described(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield a description of each count, and the count; by the names of the counts."""
    for name in sorted(counts):
        if name not in _SHOWN_ELSEWHERE:
            yield _SENTENCES.get(name, name.replace("_", " ")), counts[name]
